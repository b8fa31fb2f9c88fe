import type { DeploymentId } from "@unkey/base";
import type { SqlStatements } from "@unkey/sql";
import { bumpRoutes } from "./app-store.ts";

/**
 * Frees the name of the app that the deployment was for, when nothing has come of it: it has no release, no host was asked for
 * a VM of it, and no other deployment of it is under way. Part of the transaction in which the deployment ends.
 */
export async function deleteUnusedApp(tx: SqlStatements, deploymentId: DeploymentId, nowMs: number): Promise<void> {
  const { changes } = await tx.run(
    `UPDATE app SET state = 'deleted', deleted_at_ms = ?
     WHERE app_id = (SELECT app_id FROM deployment WHERE deployment_id = ?) AND state = 'live' AND deployment_id = ''
     AND NOT EXISTS (SELECT 1 FROM deployment o WHERE o.app_id = app.app_id AND o.ended_at_ms = 0)
     AND NOT EXISTS (
       SELECT 1 FROM deployment o JOIN deployment_step s ON s.deployment_id = o.deployment_id
       WHERE o.app_id = app.app_id AND s.kind = 'create' AND s.started_at_ms > 0
     )`,
    [nowMs, deploymentId],
  );
  if (changes > 0) await bumpRoutes(tx);
}
