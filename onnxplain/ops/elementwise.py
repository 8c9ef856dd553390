"""Elementwise functions of several inputs. Broadcasting is undone by the walk."""

from __future__ import annotations

from onnxplain.emit import Var
from onnxplain.ops.table import Call, Kind, OpTable


def sum_kind(call: Call) -> Kind:
    """SUM where several inputs are active, a shift by a constant (AFFINE) where one is."""
    return Kind.SUM if sum(call.active) > 1 else Kind.AFFINE


def product_kind(call: Call) -> Kind:
    """PRODUCT where several inputs are active, a scale by a constant (AFFINE) where one is."""
    return Kind.PRODUCT if sum(call.active) > 1 else Kind.AFFINE


TABLE = OpTable(sum_kind)


@TABLE.vjp("Add", broadcast=True)
def add(call: Call, ct: Var) -> list[Var]:
    return [ct, ct]


@TABLE.vjp("Mul", kind=product_kind, broadcast=True)
def mul(call: Call, ct: Var) -> list[Var]:
    a, b = call.inputs
    return [ct * b, ct * a]
