// A folder of images as one zip file, without compression: images are compressed already.

const TABLE = new Uint32Array(256).map((_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit += 1) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value;
});

const LARGEST = 0xffffffff;

function crc(bytes) {
  let value = 0xffffffff;
  for (let i = 0; i < bytes.length; i += 1) value = TABLE[(value ^ bytes[i]) & 255] ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}

function record(length, ...fields) {
  const view = new DataView(new ArrayBuffer(length));
  let at = 0;
  for (const [size, value] of fields) {
    if (size === 2) view.setUint16(at, value, true);
    else view.setUint32(at, value, true);
    at += size;
  }
  return new Uint8Array(view.buffer);
}

/**
 * Pack files: [{name, file}] to a Blob. Files are read one after the other and stay where they are.
 * `progress` hears the share that was read.
 */
export async function pack(entries, progress) {
  const parts = [];
  const directory = [];
  let offset = 0;
  for (const [index, { name, file }] of entries.entries()) {
    const bytes = new Uint8Array(await file.arrayBuffer());
    const spelled = new TextEncoder().encode(name);
    // version 2.0, names in UTF-8, stored, no time of day, 1 January 1980
    const facts = [[2, 20], [2, 0x800], [2, 0], [2, 0], [2, 33], [4, crc(bytes)], [4, bytes.length], [4, bytes.length], [2, spelled.length], [2, 0]];
    parts.push(record(30, [4, 0x04034b50], ...facts), spelled, file);
    directory.push(record(46, [4, 0x02014b50], [2, 20], ...facts, [2, 0], [2, 0], [2, 0], [4, 0], [4, offset]), spelled);
    offset += 30 + spelled.length + bytes.length;
    if (offset > LARGEST) throw new Error("These images are more than 4 GB together: fit them with makel fit.");
    progress((index + 1) / entries.length);
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0);
  const end = record(22, [4, 0x06054b50], [2, 0], [2, 0], [2, entries.length], [2, entries.length], [4, size], [4, offset], [2, 0]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}
