import assert from "node:assert/strict";
import { test } from "node:test";
import type { HandlerContext } from "@connectrpc/connect";
import { AssetService } from "@unkey/api/asset";
import { ServiceError } from "@unkey/base";
import { createLogger, Metrics } from "@unkey/daemon";
import { createPipeline } from "./pipeline.ts";

test("strangers cannot flood the log", async () => {
  const lines: string[] = [];
  const { requestGate } = createPipeline({
    log: createLogger({ write: (line) => lines.push(line) }),
    metrics: new Metrics(),
    authenticate: () => {
      throw new ServiceError("UNAUTHENTICATED", "nobody knows you");
    },
  });
  const context = { requestHeader: new Headers(), responseHeader: new Headers(), method: AssetService.method.getAsset };
  for (let i = 0; i < 1000; i++) await assert.rejects(requestGate(context as unknown as HandlerContext));
  // Ten in each of the few seconds that this takes at most.
  assert.ok(lines.length > 0 && lines.length < 500, `${lines.length} lines`);
});
