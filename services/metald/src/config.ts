import { readFileSync } from "node:fs";
import { availableParallelism, totalmem } from "node:os";
import { readVerificationKeys, type VerificationKey } from "@unkey/attest";
import { gib, isServiceError, mib } from "@unkey/base";
import type { Address, Settings } from "@unkey/daemon";
import { type RpcSettings, readRpcSettings } from "@unkey/rpc";
import { parseAddress, parseSubnet, type Subnet } from "./domain/subnet.ts";

export interface Config {
  readonly rpc: RpcSettings;
  /** Holds the database and the folders of VMs; names this instance on the host. */
  readonly dataDir: string;
  /** Kernel and initial ramdisk for VMs that name none; may be shared. */
  readonly guestDir: string;
  /** `memory` runs no guest: for tests. */
  readonly hypervisor: "qemu" | "memory";
  /** Addresses of VMs; undefined lets metald claim a free /20. */
  readonly subnet: Subnet | undefined;
  /** DNS servers that guests are told of; undefined stands for the host's own. */
  readonly resolvers: readonly string[] | undefined;
  /** First of 2^22 user ids for VMs. */
  readonly uidBase: number;
  readonly vcpuCapacity: number;
  readonly memoryCapacityBytes: number;
  readonly bootTimeoutMs: number;
  /** A log of a VM is kept to at most twice this. */
  readonly logLimitBytes: number;
  /** Root filesystems whose provenance one of these signed are booted, no others. */
  readonly provenanceKeys: readonly VerificationKey[];
  readonly assetmanagerd: Address;
  readonly billaged: Address;
}

/** Virtual CPUs mostly sleep: so many share one of the host. */
const vcpusPerCpu = 8;
/** Above the ranges that distributions and container engines hand out, below 2^31. */
const defaultUidBase = 0x7000_0000;
/** A socket's path has at most 107 bytes (unix(7)); that of a VM's control port is the longest: vms/vm_…/run/control.sock. */
const maxDataDirBytes = 107 - "/vms/vm_00000000000000000000000000/run/control.sock".length;

export function readConfig(settings: Settings): Config {
  const dataDir = settings.path("DATA_DIR");
  const hypervisor = settings.oneOf("HYPERVISOR", ["qemu", "memory"], { default: "qemu" });
  const dataDirBytes = Buffer.byteLength(dataDir);
  if (hypervisor === "qemu" && dataDirBytes > maxDataDirBytes) {
    settings.mistake(
      `UNKEY_METALD_DATA_DIR: has ${dataDirBytes} bytes; sockets of VMs lie below it and leave room for ${maxDataDirBytes}`,
    );
  }
  const hostMemory = totalmem();
  return {
    rpc: readRpcSettings(settings, { defaultPort: 8080 }),
    dataDir,
    guestDir: settings.path("GUEST_DIR", { default: `${dataDir}/guest` }),
    hypervisor,
    subnet: readSubnet(settings),
    resolvers: readResolvers(settings),
    uidBase: settings.int("UID_BASE", { min: 1000, max: 0x7fff_ffff - 2 ** 22, default: defaultUidBase }),
    vcpuCapacity: settings.int("VCPU_CAPACITY", {
      min: 1,
      max: 100_000,
      default: availableParallelism() * vcpusPerCpu,
    }),
    // What is left keeps the host itself and our daemons alive.
    memoryCapacityBytes: settings.bytes("MEMORY_CAPACITY", {
      min: 64 * mib,
      max: hostMemory,
      default: Math.max(64 * mib, Math.floor(hostMemory - Math.max(gib, hostMemory * 0.1))),
    }),
    bootTimeoutMs: settings.durationMs("BOOT_TIMEOUT", { min: 1_000, max: 600_000, default: 30_000 }),
    logLimitBytes: settings.bytes("LOG_LIMIT", { min: 4096, max: gib, default: 4 * mib }),
    provenanceKeys: readProvenanceKeys(settings),
    assetmanagerd: settings.address("ASSETMANAGERD_ADDRESS"),
    billaged: settings.address("BILLAGED_ADDRESS"),
  };
}

function readProvenanceKeys(settings: Settings): readonly VerificationKey[] {
  const path = settings.path("PROVENANCE_KEYS_FILE", { default: undefined });
  if (path === undefined) {
    settings.mistake(
      "UNKEY_METALD_PROVENANCE_KEYS_FILE is required: a PEM file with the public keys of the platform's builderd; " +
        "`unkey dev up` makes one, `openssl pkey -pubout` prints the public half of a key",
    );
    return [];
  }
  try {
    return readVerificationKeys(readFileSync(path, "utf8"));
  } catch (error) {
    settings.mistake(
      `UNKEY_METALD_PROVENANCE_KEYS_FILE: ${path}: ${error instanceof Error ? error.message : String(error)}`,
    );
    return [];
  }
}

function readSubnet(settings: Settings): Subnet | undefined {
  const text = settings.string("SUBNET", { default: undefined });
  if (text === undefined) return undefined;
  try {
    return parseSubnet(text, "UNKEY_METALD_SUBNET");
  } catch (error) {
    if (!isServiceError(error)) throw error;
    settings.mistake(error.message);
    return undefined;
  }
}

function readResolvers(settings: Settings): readonly string[] | undefined {
  const resolvers = settings.list("RESOLVERS", { default: undefined });
  for (const text of resolvers ?? []) {
    if (parseAddress(text) === undefined) settings.mistake(`UNKEY_METALD_RESOLVERS: "${text}" is not an IPv4 address`);
  }
  return resolvers;
}
