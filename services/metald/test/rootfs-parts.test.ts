import assert from "node:assert/strict";
import { truncate, writeFile } from "node:fs/promises";
import { type TestContext, test } from "node:test";
import { isServiceError, ServiceError } from "@unkey/base";
import type { VmSpec } from "@unkey/vmm";
import { imageInParts } from "./support/image-in-parts.ts";
import { MetalBed, nothing } from "./support/metal-bed.ts";

const threeBlocks = { a: Buffer.alloc(4096, "a"), b: Buffer.alloc(8192, "b"), c: Buffer.alloc(8192, "c") };

/** A host whose root filesystem is an image of three parts, the last two of one size; and what its hypervisor is told of drives. */
async function open(t: TestContext): Promise<{ bed: MetalBed; drives: VmSpec["drives"][] }> {
  const drives: VmSpec["drives"][] = [];
  const bed = await MetalBed.open(t, {
    guestFor: (spec) => {
      drives.push(spec.drives);
      return {};
    },
  });
  const { image, parts } = await imageInParts(threeBlocks);
  bed.assets.contentOf = () => image;
  bed.assets.parts = parts;
  return { bed, drives };
}

const refusal = (message: RegExp) => (error: unknown) => {
  assert.ok(isServiceError(error, "PROVENANCE_INVALID"), String(error));
  assert.match(error.message, message);
  return true;
};

test("the parts of a root filesystem are drives in its order, at each boot, also after a restart and without assetmanagerd", async (t) => {
  const { bed, drives } = await open(t);
  const { vmId, tenantId } = await bed.createAndBoot();
  const { rootfs } = bed.paths(vmId);
  await bed.client().shutdownVm({ tenantId, vmId });
  await bed.restart();
  bed.assets.failure = new ServiceError("DEPENDENCY_UNAVAILABLE", "assetmanagerd is away");
  await bed.client().bootVm({ tenantId, vmId });
  await bed.client().rebootVm({ tenantId, vmId });
  assert.deepEqual(
    drives.map(({ basePath, basePartPaths }) => [basePath, ...basePartPaths]),
    Array.from({ length: 3 }, () => [rootfs, `${rootfs}.1`, `${rootfs}.2`, `${rootfs}.3`]),
  );
  bed.assets.failure = undefined;
  await bed.client().deleteVm({ tenantId, vmId });
  assert.deepEqual(await bed.leftovers(), nothing);
});

/** What is staged beside the image that is attested → how the creation is refused. */
const staged: readonly {
  readonly name: string;
  readonly change: (bed: MetalBed) => Promise<void> | void;
  readonly message: RegExp;
}[] = [
  {
    name: "without its last part",
    change: ({ assets }) => void (assets.parts = assets.parts.slice(0, -1)),
    message: /names 3 parts, and 2 were staged/,
  },
  {
    name: "without any part",
    change: ({ assets }) => void (assets.parts = []),
    message: /names 3 parts, and 0 were staged/,
  },
  {
    name: "with a part too many",
    change: ({ assets }) => void (assets.parts = [...assets.parts, Buffer.alloc(4096)]),
    message: /names 3 parts, and 4 were staged/,
  },
  {
    name: "with two parts of one size in each other's place",
    change: ({ assets }) => {
      const [first, second, third] = assets.parts;
      assets.parts = [first!, third!, second!];
    },
    message: /part 2 is sha256:[0-9a-f]{64}, and its image names sha256:[0-9a-f]{64}/,
  },
  {
    name: "with other content in a part",
    change: ({ assets }) => void (assets.parts = [Buffer.alloc(4096, "x"), ...assets.parts.slice(1)]),
    message: /part 1 is sha256:/,
  },
  {
    name: "with parts that its format has not",
    change: ({ assets }) => void (assets.contentOf = () => Buffer.alloc(8192, "ext4")),
    message: /no EROFS image/,
  },
];

for (const { name, change, message } of staged) {
  test(`a VM whose root filesystem is staged ${name} is not made, and nothing of it stays`, async (t) => {
    const { bed, drives } = await open(t);
    await change(bed);
    await assert.rejects(bed.client().createVm(bed.wish()), refusal(message));
    assert.deepEqual(await bed.leftovers(), nothing);
    assert.deepEqual(drives, []);
  });
}

test("a VM whose staged image is not the attested one is not made", async (t) => {
  const { bed } = await open(t);
  const { contentOf, provenancesOf } = bed.assets;
  let asked = 0;
  bed.assets.provenancesOf = (digest) => {
    const found = provenancesOf(digest);
    // Listed and fetched, and the staging comes after: by then the bytes are others.
    if (++asked === 2) bed.assets.contentOf = (assetId) => Buffer.concat([contentOf(assetId), Buffer.alloc(4096)]);
    return found;
  };
  await assert.rejects(
    bed.client().createVm(bed.wish()),
    refusal(/its image is sha256:.*, and the provenance is about/),
  );
  assert.deepEqual(await bed.leftovers(), nothing);
});

/** What happens to the files in a VM's folder → how its next boot is refused. */
const damages: readonly {
  readonly name: string;
  readonly change: (rootfs: string) => Promise<void>;
  readonly message: RegExp;
}[] = [
  {
    name: "a part was cut short",
    change: (rootfs) => truncate(`${rootfs}.2`, 4096),
    message: /part 2 has 4096 bytes instead of 8192/,
  },
  {
    name: "the image is one of other parts",
    change: async (rootfs) => {
      const other = await imageInParts({ ...threeBlocks, a: Buffer.alloc(4096, "x") });
      await writeFile(rootfs, other.image);
    },
    message: /part 1 is sha256:/,
  },
  {
    name: "the image is whole",
    change: async (rootfs) => writeFile(rootfs, (await imageInParts({})).image),
    message: /names 0 parts, and 3 were staged/,
  },
];

for (const { name, change, message } of damages) {
  test(`a VM does not boot again when ${name}`, async (t) => {
    const { bed, drives } = await open(t);
    const { vmId, tenantId } = await bed.createAndBoot();
    await bed.client().shutdownVm({ tenantId, vmId });
    await change(bed.paths(vmId).rootfs);
    await assert.rejects(bed.client().bootVm({ tenantId, vmId }), refusal(message));
    assert.equal(drives.length, 1, "no hypervisor was started");
  });
}

test("a VM that an earlier release staged boots when its image has no parts, and is refused when it has", async (t) => {
  const { bed, drives } = await open(t);
  const inParts = await bed.createAndBoot();
  bed.assets.contentOf = () => Buffer.alloc(8192, "ext4");
  bed.assets.parts = [];
  const whole = await bed.createAndBoot();
  for (const { vmId, tenantId } of [inParts, whole]) await bed.client().shutdownVm({ tenantId, vmId });
  await bed.run.sql.run("UPDATE vm SET staged_rootfs = NULL");
  await bed.restart();
  await bed.client().bootVm({ tenantId: whole.tenantId, vmId: whole.vmId });
  assert.deepEqual(drives.at(-1)?.basePartPaths, []);
  await assert.rejects(
    bed.client().bootVm({ tenantId: inParts.tenantId, vmId: inParts.vmId }),
    refusal(/names 3 parts, and 0 were staged/),
  );
});
