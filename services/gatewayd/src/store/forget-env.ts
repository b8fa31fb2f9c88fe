import { fromBinary, toBinary } from "@bufbuild/protobuf";
import { CreateDeploymentRequestSchema } from "@unkey/api/gateway";
import type { DeploymentId } from "@unkey/base";
import type { SqlStatements, SqlValue } from "@unkey/sql";

/** Environments hold secrets: they go as soon as no VM can be made from the deployment any more. */
export async function forgetEnv(tx: SqlStatements, where: string, params: readonly SqlValue[]): Promise<void> {
  const rows = await tx.query<{ deployment_id: DeploymentId; request: Uint8Array }>(
    `SELECT deployment_id, request FROM deployment WHERE ${where}`,
    params,
  );
  for (const { deployment_id, request } of rows) {
    const kept = fromBinary(CreateDeploymentRequestSchema, request);
    if (kept.env.length === 0) continue;
    kept.env = [];
    await tx.run("UPDATE deployment SET request = ? WHERE deployment_id = ?", [
      toBinary(CreateDeploymentRequestSchema, kept),
      deployment_id,
    ]);
  }
}
