import { type HostId, newId, parseId, ServiceError, type TenantId, type VmId } from "@unkey/base";
import type { VmState } from "@unkey/model";
import type { Sql, SqlStatements, SqlValue } from "@unkey/sql";
import { admit, type Capacity, footprint, type Resources, sum } from "../domain/capacity.ts";
import { firstSlot } from "../domain/subnet.ts";
import type { Vm, VmPatch } from "../domain/vm.ts";
import type { Admission, ListQuery, Reservation, VmStore } from "../ports.ts";

interface VmRow {
  vm_id: string;
  tenant_id: string;
  app_id: string;
  deployment_id: string;
  spec_hash: string;
  spec: Uint8Array;
  vcpu_count: number;
  memory_bytes: number;
  disk_bytes: number;
  rootfs_asset_id: string;
  slot: number | null;
  state: string;
  incarnation: number;
  revision: number;
  exit: string | null;
  failure: string | null;
  created_at_ms: number;
  started_at_ms: number;
  ended_at_ms: number;
  record: string | null;
  lease_id: string | null;
  staged_rootfs: string | null;
  operation: string | null;
}

/** An address rests so long before another VM gets it: connections and caches that still mean the old VM have died by then. */
const addressRestMs = 120_000;

export class SqlVmStore implements VmStore {
  readonly #sql: Sql;

  constructor(sql: Sql) {
    this.#sql = sql;
  }

  async fact(name: string): Promise<string | undefined> {
    return factOf(this.#sql, name);
  }

  async setFact(name: string, value: string): Promise<void> {
    await putFact(this.#sql, name, value);
  }

  async hostId(): Promise<HostId> {
    return this.#sql.transaction(async (tx) => {
      const known = await factOf(tx, "host_id");
      if (known !== undefined) return parseId("host", known, "host_id");
      const hostId = newId("host");
      await putFact(tx, "host_id", hostId);
      return hostId;
    });
  }

  /** One more than any start of this host's metald before. */
  async nextEpoch(): Promise<number> {
    return this.#sql.transaction(async (tx) => {
      const epoch = Number((await factOf(tx, "epoch")) ?? "0") + 1;
      await putFact(tx, "epoch", String(epoch));
      return epoch;
    });
  }

  async admit(wish: Admission, capacity: Capacity, lastSlot: number): Promise<{ vm: Vm; isNew: boolean }> {
    const { reservationId, ...admission } = wish;
    return this.#sql.transaction(async (tx) => {
      const known = await tx.one<VmRow>("SELECT * FROM vm WHERE vm_id = ?", [admission.id]);
      if (known) {
        const vm = toVm(known);
        if (vm.tenantId === admission.tenantId && vm.specHash === admission.specHash) return { vm, isNew: false };
        throw new ServiceError("VM_ID_REUSED", `${admission.id} was used before, for another VM`);
      }
      await tx.run("DELETE FROM reservation WHERE reservation_id = ? AND tenant_id = ?", [
        reservationId,
        admission.tenantId,
      ]);
      admit(admission, await takenOf(tx, admission.createdAtMs), capacity);
      const slot = await freeSlot(tx, admission.createdAtMs, lastSlot);
      const vm: Vm = {
        ...admission,
        slot,
        state: "creating",
        incarnation: 0,
        revision: 1,
        exit: undefined,
        failure: undefined,
        startedAtMs: 0,
        endedAtMs: 0,
        record: undefined,
        leaseId: undefined,
        stagedRootfs: undefined,
        operation: { verb: "create", index: 0 },
      };
      const row = toRow(vm);
      const columns = Object.keys(row);
      const text = `INSERT INTO vm (${columns.join(", ")}) VALUES (${columns.map(() => "?").join(", ")})`;
      await tx.run(text, Object.values(row));
      return { vm, isNew: true };
    });
  }

  async reserve(reservation: Reservation, capacity: Capacity, nowMs: number): Promise<void> {
    const { id, tenantId, vcpuCount, memoryBytes, diskBytes, expiresAtMs } = reservation;
    await this.#sql.transaction(async (tx) => {
      await tx.run("DELETE FROM reservation WHERE expires_at_ms <= ?", [nowMs]);
      const known = await tx.one<ResourceRow & { tenant_id: string }>(
        "SELECT tenant_id, vcpu_count, memory_bytes, disk_bytes FROM reservation WHERE reservation_id = ?",
        [id],
      );
      if (known) {
        const same =
          known.tenant_id === tenantId &&
          known.vcpu_count === vcpuCount &&
          known.memory_bytes === memoryBytes &&
          known.disk_bytes === diskBytes;
        if (!same) throw new ServiceError("RESERVATION_ID_REUSED", `${id} already holds other room`);
        await tx.run("UPDATE reservation SET expires_at_ms = ? WHERE reservation_id = ?", [expiresAtMs, id]);
        return;
      }
      admit(reservation, await takenOf(tx, nowMs), capacity);
      await tx.run(
        `INSERT INTO reservation (reservation_id, tenant_id, vcpu_count, memory_bytes, disk_bytes, expires_at_ms)
         VALUES (?, ?, ?, ?, ?, ?)`,
        [id, tenantId, vcpuCount, memoryBytes, diskBytes, expiresAtMs],
      );
    });
  }

  async releaseReservation(tenantId: TenantId, id: string): Promise<void> {
    await this.#sql.run("DELETE FROM reservation WHERE reservation_id = ? AND tenant_id = ?", [id, tenantId]);
  }

  async update(vm: Vm, patch: VmPatch, nowMs: number): Promise<Vm> {
    const next: Vm = { ...vm, ...patch, revision: vm.revision + 1 };
    const row: Partial<Record<keyof VmRow, SqlValue>> = toRow(next);
    delete row.vm_id;
    await this.#sql.transaction(async (tx) => {
      const text = `UPDATE vm SET ${Object.keys(row)
        .map((column) => `${column} = ?`)
        .join(", ")} WHERE vm_id = ? AND revision = ?`;
      const { changes } = await tx.run(text, [...Object.values(row), vm.id, vm.revision]);
      if (changes !== 1) throw new ServiceError("INTERNAL", `${vm.id} was changed by somebody else`);
      if (vm.slot !== undefined && next.slot === undefined) {
        await tx.run("INSERT OR REPLACE INTO released_slot (slot, released_at_ms) VALUES (?, ?)", [vm.slot, nowMs]);
      }
    });
    return next;
  }

  async get(id: VmId): Promise<Vm | undefined> {
    const row = await this.#sql.one<VmRow>("SELECT * FROM vm WHERE vm_id = ?", [id]);
    return row && toVm(row);
  }

  async alive(): Promise<Vm[]> {
    const rows = await this.#sql.query<VmRow>(
      "SELECT * FROM vm WHERE state <> 'deleted' ORDER BY created_at_ms, vm_id",
    );
    return rows.map(toVm);
  }

  async list(query: ListQuery): Promise<Vm[]> {
    const { tenantId, appId, includeDeleted, before, limit } = query;
    const conditions: [string, SqlValue[]][] = [];
    if (tenantId !== undefined) conditions.push(["tenant_id = ?", [tenantId]]);
    if (appId !== undefined) conditions.push(["app_id = ?", [appId]]);
    if (!includeDeleted) conditions.push(["state <> 'deleted'", []]);
    if (before !== undefined) conditions.push(["(created_at_ms, vm_id) < (?, ?)", [before.createdAtMs, before.id]]);
    const where = conditions.length > 0 ? `WHERE ${conditions.map(([text]) => text).join(" AND ")}` : "";
    const rows = await this.#sql.query<VmRow>(
      `SELECT * FROM vm ${where} ORDER BY created_at_ms DESC, vm_id DESC LIMIT ?`,
      [...conditions.flatMap(([, params]) => params), limit],
    );
    return rows.map(toVm);
  }

  async taken(nowMs: number): Promise<Resources & { readonly vmCount: number }> {
    return this.#sql.transaction(async (tx) => {
      const { count } = (await tx.one<{ count: number }>(
        "SELECT COUNT(*) AS count FROM vm WHERE state <> 'deleted'",
      )) ?? {
        count: 0,
      };
      return { ...(await takenOf(tx, nowMs)), vmCount: count };
    });
  }

  async highestSlot(): Promise<number> {
    const row = await this.#sql.one<{ slot: number | null }>("SELECT MAX(slot) AS slot FROM vm");
    return row?.slot ?? 0;
  }

  async withdrawSlot(slot: number): Promise<void> {
    await this.#sql.run("INSERT OR REPLACE INTO released_slot (slot, released_at_ms) VALUES (?, ?)", [
      slot,
      endOfTimeMs,
    ]);
  }
}

const endOfTimeMs = Number.MAX_SAFE_INTEGER;

type ResourceRow = Pick<VmRow, "vcpu_count" | "memory_bytes" | "disk_bytes">;

// A failed or stopped VM counts too: it may boot again, and its disk is there.
const takenResources = `
  SELECT vcpu_count, memory_bytes, disk_bytes FROM vm WHERE state <> 'deleted'
  UNION ALL SELECT vcpu_count, memory_bytes, disk_bytes FROM reservation WHERE expires_at_ms > ?`;

function costOf(row: ResourceRow): Resources {
  return footprint({ vcpuCount: row.vcpu_count, memoryBytes: row.memory_bytes, diskBytes: row.disk_bytes });
}

async function takenOf(tx: SqlStatements, nowMs: number): Promise<Resources> {
  return sum((await tx.query<ResourceRow>(takenResources, [nowMs])).map(costOf));
}

/** The next slot that was never used, then the one that has rested longest. */
async function freeSlot(tx: SqlStatements, nowMs: number, lastSlot: number): Promise<number> {
  const highest = await tx.one<{ slot: number | null }>(
    "SELECT MAX(slot) AS slot FROM (SELECT slot FROM vm UNION ALL SELECT slot FROM released_slot)",
  );
  const next = Math.max(firstSlot, (highest?.slot ?? 0) + 1);
  if (next <= lastSlot) return next;
  const rested = await tx.one<{ slot: number }>(
    "SELECT slot FROM released_slot WHERE released_at_ms <= ? AND slot <= ? ORDER BY released_at_ms LIMIT 1",
    [nowMs - addressRestMs, lastSlot],
  );
  if (!rested) {
    throw new ServiceError(
      "HOST_ADDRESSES_EXHAUSTED",
      "every address of the host's VM subnet is in use or was until a moment ago",
    );
  }
  await tx.run("DELETE FROM released_slot WHERE slot = ?", [rested.slot]);
  return rested.slot;
}

async function factOf(sql: SqlStatements, name: string): Promise<string | undefined> {
  return (await sql.one<{ value: string }>("SELECT value FROM host_fact WHERE name = ?", [name]))?.value;
}

async function putFact(sql: SqlStatements, name: string, value: string): Promise<void> {
  await sql.run("INSERT OR REPLACE INTO host_fact (name, value) VALUES (?, ?)", [name, value]);
}

function toRow(vm: Vm): Record<keyof VmRow, SqlValue> {
  return {
    vm_id: vm.id,
    tenant_id: vm.tenantId,
    app_id: vm.appId,
    deployment_id: vm.deploymentId,
    spec_hash: vm.specHash,
    spec: vm.spec,
    vcpu_count: vm.vcpuCount,
    memory_bytes: vm.memoryBytes,
    disk_bytes: vm.diskBytes,
    rootfs_asset_id: vm.rootfsAssetId,
    slot: vm.slot ?? null,
    state: vm.state,
    incarnation: vm.incarnation,
    revision: vm.revision,
    exit: toJson(vm.exit),
    failure: toJson(vm.failure),
    created_at_ms: vm.createdAtMs,
    started_at_ms: vm.startedAtMs,
    ended_at_ms: vm.endedAtMs,
    record: toJson(vm.record),
    lease_id: vm.leaseId ?? null,
    staged_rootfs: toJson(vm.stagedRootfs),
    operation: toJson(vm.operation),
  };
}

function toVm(row: VmRow): Vm {
  return {
    id: row.vm_id as VmId,
    tenantId: row.tenant_id as TenantId,
    appId: row.app_id,
    deploymentId: row.deployment_id,
    specHash: row.spec_hash,
    spec: row.spec,
    vcpuCount: row.vcpu_count,
    memoryBytes: row.memory_bytes,
    diskBytes: row.disk_bytes,
    rootfsAssetId: row.rootfs_asset_id,
    slot: row.slot ?? undefined,
    state: row.state as VmState,
    incarnation: row.incarnation,
    revision: row.revision,
    exit: fromJson(row.exit) as Vm["exit"],
    failure: fromJson(row.failure) as Vm["failure"],
    createdAtMs: row.created_at_ms,
    startedAtMs: row.started_at_ms,
    endedAtMs: row.ended_at_ms,
    record: fromJson(row.record) as Vm["record"],
    leaseId: row.lease_id ?? undefined,
    stagedRootfs: fromJson(row.staged_rootfs) as Vm["stagedRootfs"],
    operation: fromJson(row.operation) as Vm["operation"],
  };
}

function toJson(value: object | undefined): string | null {
  return value === undefined ? null : JSON.stringify(value);
}

/** What `toJson` wrote. */
function fromJson(text: string | null): unknown {
  return text === null ? undefined : JSON.parse(text);
}
