#!/usr/bin/env python3
"""Train models/digits_cnn.onnx on scikit-learn's digits, and write its labels and a sample image; takes seconds."""

from __future__ import annotations

from artifacts import export, needing, output_folder, write, write_model

PACKAGES = "torch==2.13.0 onnx scikit-learn opencv-python-headless"
with needing(PACKAGES):
    import cv2
    import numpy as np
    import torch
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from torch import nn

DESCRIPTION = "A small convolutional classifier of 8x8 handwritten digits, trained by tools/make_digits.py. Apache-2.0."
NOTE = {
    "layout": "NCHW",
    "size": [8, 8],
    "color": "GRAY",
    "scale": 1.0,
    "mean": 0.0,
    "std": 255.0,
    "resize": "stretch",
    "interpolation": "area",
    "labels": "digits_labels.txt",
}
EPOCHS, BATCH = 40, 32
UPSCALE = 16  # edge in pixels of a square of the sample image: whole squares, so scaling down gives the pixel back


def train(images: torch.Tensor, digits: torch.Tensor) -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3, weight_decay=1e-4)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images[chosen]), digits[chosen]).backward()
            optimizer.step()
    return net


def main() -> None:
    folder = output_folder(__doc__, PACKAGES)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the order of sums, and so the weights, must not depend on the number of cores
    pixels, digits = load_digits(return_X_y=True)
    split = train_test_split(pixels, digits, test_size=0.2, stratify=digits, random_state=0)
    images, held_out = (torch.tensor(part / 16, dtype=torch.float32).reshape(-1, 1, 8, 8) for part in split[:2])
    net = train(images, torch.tensor(split[2]))
    with torch.no_grad():
        logits = net(held_out).numpy()
    accuracy = np.mean(logits.argmax(1) == split[3])
    print(f"accuracy on the held-out fifth: {accuracy:.4f} of {len(held_out)}")
    write_model(folder / "digits_cnn.onnx", export(net, held_out[:2]), DESCRIPTION, NOTE)
    write(folder / "digits_labels.txt", "".join(f"{digit}\n" for digit in range(10)).encode())
    three = held_out[logits[:, 3].argmax(), 0].numpy()  # the plainest 3 among those the network has not seen
    squares = np.kron(np.round(three * 255), np.ones((UPSCALE, UPSCALE)))
    write(folder / "digit_3.png", cv2.imencode(".png", squares.astype(np.uint8))[1].tobytes())


if __name__ == "__main__":
    main()
