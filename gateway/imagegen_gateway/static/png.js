// The parameters that a worker has written into a PNG: its text chunk `parameters`.

const SIGNATURE = 8;
const NAME = "parameters";

/** Return the parameters in the bytes of a PNG; null for one without them, and for other files. */
export function parametersIn(buffer) {
  const view = new DataView(buffer);
  const latin = new TextDecoder("latin1");
  if (view.byteLength < SIGNATURE || view.getUint32(0) !== 0x89504e47) return null;
  for (let start = SIGNATURE; start + 8 <= view.byteLength; ) {
    const length = view.getUint32(start);
    const type = latin.decode(new Uint8Array(buffer, start + 4, 4));
    if (type === "tEXt") {
      const [name, text] = latin.decode(new Uint8Array(buffer, start + 8, length)).split("\0");
      if (name === NAME) return JSON.parse(text);
    }
    if (type === "IDAT") return null;
    start += length + 12;
  }
  return null;
}
