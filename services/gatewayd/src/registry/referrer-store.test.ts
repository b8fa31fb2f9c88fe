import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { test } from "node:test";
import { newId } from "@unkey/base";
import { openSqlite } from "@unkey/sql";
import { migrations } from "../store/schema.ts";
import type { Sha256 } from "./digest.ts";
import { ociManifestType } from "./manifest-document.ts";
import { ManifestStore } from "./manifest-store.ts";
import { ReferrerStore } from "./referrer-store.ts";

const kib = 1024;
const digestOf = (text: string): Sha256 => `sha256:${createHash("sha256").update(text).digest("hex")}`;

test("a page of referrers is as long as its bound allows, whatever their annotations", async () => {
  await using sql = await openSqlite({ path: ":memory:", migrations });
  const place = { tenantId: newId("tenant"), repository: "app" };
  await sql.run("INSERT INTO tenant (tenant_id, created_at_ms) VALUES (?, 0)", [place.tenantId]);
  const store = new ManifestStore(sql);
  const referrers = new ReferrerStore(sql);
  const subject = digestOf("subject");
  const pushed: string[] = [];
  for (let at = 0; at < 20; at++) {
    const digest = digestOf(`manifest ${at}`);
    pushed.push(digest);
    await store.put({
      place,
      document: {
        mediaType: ociManifestType,
        blobs: [],
        manifests: [],
        subject,
        artifactType: at % 2 === 0 ? "x/even" : "x/odd",
        annotations: { note: "n".repeat(at === 7 ? 400 * kib : 64 * kib) },
      },
      blob: { digest, assetId: newId("asset"), sizeBytes: 1 },
      tags: [],
      uploadId: "",
      nowMs: 0,
    });
  }
  const maxBytes = 256 * kib;
  const seen: string[] = [];
  for (let last = "", more = true; more; ) {
    const page = await referrers.list(place, { subject, artifactType: "", last, limit: 5, maxBytes });
    assert.ok(page.rows.length > 0 && page.rows.length <= 5);
    assert.ok(page.rows.length === 1 || JSON.stringify(page.rows).length <= maxBytes);
    seen.push(...page.rows.map(({ digest }) => digest));
    last = page.rows.at(-1)?.digest ?? "";
    more = page.more;
  }
  assert.deepEqual(seen, pushed.toSorted());
  const odd = await referrers.list(place, { subject, artifactType: "x/odd", last: "", limit: 50, maxBytes: 2 ** 30 });
  assert.deepEqual([odd.rows.length, odd.more], [10, false]);
  const none = await referrers.list(place, { subject: digestOf("x"), artifactType: "", last: "", limit: 5, maxBytes });
  assert.deepEqual(none, { rows: [], more: false });
});
