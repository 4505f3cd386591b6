// The parameters that workers write into PNG files, in the text chunk `parameters`.

const SIGNATURE = 8;
const NAME = "parameters";

/** Return the parameters in a PNG file; null if there are none or the file has another format. */
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
