// Runs exported explainers in onnxruntime-node: reads NAME.onnx and NAME.json of each NAME given, writes NAME.bin.
// NODE_PATH says where onnxruntime-node is.
const fs = require("fs");
const ort = require("onnxruntime-node");

async function run(name) {
  const { shape, target } = JSON.parse(fs.readFileSync(`${name}.json`));
  const image = new Float32Array(new Uint8Array(fs.readFileSync(`${name}.input`)).buffer);
  const session = await ort.InferenceSession.create(`${name}.onnx`);
  const { attribution } = await session.run({
    image: new ort.Tensor("float32", image, shape),
    target: new ort.Tensor("int64", BigInt64Array.from(target.map(BigInt)), [target.length]),
  });
  fs.writeFileSync(`${name}.bin`, new Uint8Array(attribution.data.buffer, attribution.data.byteOffset, attribution.data.byteLength));
}

(async () => {
  for (const name of process.argv.slice(2)) await run(name);
})();
