import { InvalidInput } from "../invalid-input.ts";

/*
 * POSIX access control lists: the text that archives carry (acl(5), and star's form with a number behind the name) and the
 * bytes that Linux stores (linux/posix_acl_xattr.h): version 2, then tag, permissions and id of each entry, little endian.
 */

const version = 2;
const tags = { userObj: 0x01, user: 0x02, groupObj: 0x04, group: 0x08, mask: 0x10, other: 0x20 } as const;
const noId = 0xffffffff;
const maxEntries = 1024;

interface Entry {
  readonly tag: number;
  readonly permissions: number;
  readonly id: number;
}

/**
 * The stored form of a list in text. "trivial" when it says no more than a mode does, "unresolved" when it names a user
 * or group without a number: the archive does not say who that is. Throws InvalidInput when it is no list.
 */
export function encodeAclText(text: Buffer): Buffer | "trivial" | "unresolved" {
  const entries: Entry[] = [];
  for (const line of text.toString("latin1").split(/[,\n]/)) {
    const entry = line.replace(/#.*$/s, "").trim();
    if (entry === "") continue;
    if (entries.length === maxEntries) throw new InvalidInput(`an access control list has over ${maxEntries} entries`);
    const match = /^(user|group|mask|other|[ugmo]):([^:]*):([r-][w-][x-])(?::(\d{1,10}))?$/.exec(entry);
    if (match === null) throw new InvalidInput("an access control list has a malformed entry");
    const [, kind = "", name = "", permissions = "", number] = match;
    const named = name !== "";
    const initial = kind.charAt(0);
    if (named && (initial === "m" || initial === "o")) {
      throw new InvalidInput("an access control list has a malformed entry");
    }
    const id = named ? (number ?? name) : String(noId);
    if (!/^\d{1,10}$/.test(id)) return "unresolved";
    if (named && Number(id) >= noId) throw new InvalidInput("an access control list names an id out of range");
    entries.push({
      tag:
        initial === "u"
          ? named
            ? tags.user
            : tags.userObj
          : initial === "g"
            ? named
              ? tags.group
              : tags.groupObj
            : initial === "m"
              ? tags.mask
              : tags.other,
      permissions:
        (permissions[0] === "r" ? 4 : 0) | (permissions[1] === "w" ? 2 : 0) | (permissions[2] === "x" ? 1 : 0),
      id: Number(id),
    });
  }
  entries.sort((a, b) => a.tag - b.tag || a.id - b.id);
  const value = Buffer.alloc(4 + 8 * entries.length);
  value.writeUInt32LE(version, 0);
  for (const [at, { tag, permissions, id }] of entries.entries()) {
    value.writeUInt16LE(tag, 4 + 8 * at);
    value.writeUInt16LE(permissions, 6 + 8 * at);
    value.writeUInt32LE(id, 8 + 8 * at);
  }
  if (!isPosixAcl(value)) throw new InvalidInput("an access control list is not complete");
  return entries.length === 3 ? "trivial" : value;
}

/** True for bytes that the kernel takes as a list (posix_acl_valid in fs/posix_acl.c). */
export function isPosixAcl(value: Buffer): boolean {
  if (value.length < 4 || (value.length - 4) % 8 !== 0 || value.readUInt32LE(0) !== version) return false;
  if (value.length > 4 + 8 * maxEntries) return false;
  const seen = new Map<number, number>();
  let last = 0;
  for (let at = 4; at < value.length; at += 8) {
    const tag = value.readUInt16LE(at);
    if (tag < last || value.readUInt16LE(at + 2) > 7) return false;
    if ((tag === tags.user || tag === tags.group) && value.readUInt32LE(at + 4) === noId) return false;
    last = tag;
    seen.set(tag, (seen.get(tag) ?? 0) + 1);
  }
  const count = (tag: number): number => seen.get(tag) ?? 0;
  const named = count(tags.user) + count(tags.group);
  const known = named + count(tags.userObj) + count(tags.groupObj) + count(tags.mask) + count(tags.other);
  return (
    known === (value.length - 4) / 8 &&
    count(tags.userObj) === 1 &&
    count(tags.groupObj) === 1 &&
    count(tags.other) === 1 &&
    count(tags.mask) <= 1 &&
    (named === 0 || count(tags.mask) === 1)
  );
}
