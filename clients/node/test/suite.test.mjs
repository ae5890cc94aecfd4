// Every step of the reader against golden suites: MAKEL_SUITES names folders, each with `model` and `suite` inside.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { delimiter, join } from "node:path";
import { test } from "node:test";

import { Reader } from "../reader.mjs";

const TYPES = { uint8: Uint8Array, uint16: Uint16Array, float32: Float32Array };

function read(folder, { file, dtype, shape, sha256 }) {
  const bytes = readFileSync(join(folder, file));
  assert.equal(createHash("sha256").update(bytes).digest("hex"), sha256, file);
  const data = new TYPES[dtype](bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
  assert.equal(data.length, shape.reduce((product, each) => product * each, 1), file);
  return { data, shape };
}

/** A (N, ...) array as N arrays. */
function parts({ data, shape: [count] }) {
  const size = data.length / count;
  return Array.from({ length: count }, (_, i) => data.subarray(i * size, (i + 1) * size));
}

const worst = (found, expected) => found.reduce((most, each, i) => Math.max(most, Math.abs(each - expected[i])), 0);

for (const place of (process.env.MAKEL_SUITES ?? "").split(delimiter).filter(Boolean)) {
  const folder = join(place, "suite");
  const suite = JSON.parse(readFileSync(join(folder, "suite.json"), "utf8"));
  const allowed = suite.tolerances;
  const loading = Reader.load(join(place, "model"));
  test(`${place}: decisions`, async () => {
    const reader = await loading;
    for (const expected of suite.decisions) {
      const { verdict, p_value } = reader.decide(expected.score, null, []);
      assert.deepEqual({ score: expected.score, verdict, p_value }, expected);
    }
  });
  for (const expected of suite.cases) {
    test(`${place}: ${expected.name}`, async () => {
      const reader = await loading;
      assert.equal(reader.manifest.model_id, suite.model_id);
      const stored = read(folder, expected.pixels);
      const [height, width, channels] = stored.shape;
      const image = { data: stored.data, height, width, channels };
      const white = reader.preprocessing.white_level ?? 255;

      const cut = reader.prepare(image);
      const prepared = parts(read(folder, expected.prepared));
      assert.equal(cut.prepared.length, prepared.length);
      cut.prepared.forEach((found, i) => {
        const share = found.filter((value, at) => value !== prepared[i][at]).length / found.length;
        const levels = worst(found, prepared[i]) * white;
        assert.ok(levels <= allowed.prepared_levels + 1e-3, `${levels} levels off`);
        const allowedShare = process.env.MAKEL_EXACT && white === 255 ? 0 : allowed.prepared_share;
        assert.ok(share <= allowedShare, `${share} of the values differ`);
      });

      const { scores, maps } = await reader.run(prepared);
      const storedScores = read(folder, expected.network_scores).data;
      const storedMaps = parts(read(folder, expected.network_maps));
      assert.ok(worst(scores, storedScores) <= allowed.score);
      maps.forEach((found, i) => assert.ok(worst(found, storedMaps[i]) <= allowed.map));

      const enlarged = reader.enlarge(storedMaps, cut, height, width);
      const storedMap = read(folder, expected.anomaly_map).data;
      const highest = storedMap.reduce((most, each) => Math.max(most, each), 0);
      const apart = worst(enlarged, storedMap);
      assert.ok(apart <= allowed.enlarged_map * highest, `the enlarged map is ${apart} off`);

      const regions = reader.findRegions(storedMap, height, width);
      const decided = reader.decide(Math.max(...storedScores), cut.isTiled ? null : storedMaps[0], regions);
      // makel runs several tiles at once, which may change the last digits of a score.
      assert.ok(Math.abs(decided.score - expected.verdict.score) <= allowed.score, `score ${decided.score}`);
      assert.deepEqual({ ...decided, score: expected.verdict.score }, expected.verdict);

      const { verdict, score, threshold } = expected.verdict;
      const isAtThreshold = Math.abs(score - threshold) <= allowed.score; // where rounding alone decides
      if (!isAtThreshold) assert.equal((await reader.inspect(image)).verdict, verdict);
    });
  }
}

test("there is a suite to pass", () => assert.ok(process.env.MAKEL_SUITES, "name folders in MAKEL_SUITES"));
