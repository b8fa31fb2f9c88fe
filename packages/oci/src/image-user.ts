import { ServiceError } from "@unkey/base";

export interface NumericUser {
  readonly uid: number;
  readonly gid: number;
  /** Supplementary groups. */
  readonly groups: readonly number[];
  /** Home directory from /etc/passwd; `/` when it has no entry. */
  readonly home: string;
}

const maxId = 0xfffffffe;
const maxGroups = 256;

/**
 * Resolves an image's `User` by the image's own passwd(5) and group(5) text, with the rules that container engines share:
 * a name must be known, a number need not be; without a group the user's own and supplementary ones hold; with one, only
 * that. Throws IMAGE_USER_UNKNOWN.
 */
export function resolveUser(user: string, passwd: string, group: string): NumericUser {
  const colon = user.indexOf(":");
  const userPart = colon < 0 ? user : user.slice(0, colon);
  const groupPart = colon < 0 ? "" : user.slice(colon + 1);
  const wantedUid = userPart === "" ? 0 : numericId(userPart);

  const account = records(passwd).find(
    (fields) =>
      (userPart !== "" && fields[0] === userPart) ||
      (wantedUid !== undefined && numericId(fields[2] ?? "") === wantedUid),
  );
  const uid = account === undefined ? wantedUid : numericId(account[2] ?? "");
  if (uid === undefined) {
    throw new ServiceError("IMAGE_USER_UNKNOWN", `the image's user "${cut(userPart)}" is not in its /etc/passwd`);
  }
  const ownGid = numericId(account?.[3] ?? "") ?? 0;
  const home = account?.[5]?.startsWith("/") === true ? account[5] : "/";

  const allGroups = records(group);
  if (groupPart !== "") {
    const wantedGid = numericId(groupPart);
    const named = allGroups.find(
      (fields) => fields[0] === groupPart || (wantedGid !== undefined && numericId(fields[2] ?? "") === wantedGid),
    );
    const gid = named === undefined ? wantedGid : numericId(named[2] ?? "");
    if (gid === undefined) {
      throw new ServiceError("IMAGE_USER_UNKNOWN", `the image's group "${cut(groupPart)}" is not in its /etc/group`);
    }
    return { uid, gid, groups: [], home };
  }
  const name = account?.[0];
  const groups = new Set<number>();
  for (const fields of allGroups) {
    const gid = numericId(fields[2] ?? "");
    if (name !== undefined && gid !== undefined && fields[3]?.split(",").includes(name) === true) groups.add(gid);
  }
  if (groups.size > maxGroups) {
    throw new ServiceError("IMAGE_USER_UNKNOWN", `the image's user "${cut(userPart)}" is in over ${maxGroups} groups`);
  }
  return { uid, gid: ownGid, groups: [...groups], home };
}

function records(text: string): string[][] {
  return text
    .split("\n")
    .filter((line) => line !== "" && !line.startsWith("#"))
    .map((line) => line.split(":"))
    .filter((fields) => fields.length >= 3);
}

function numericId(text: string): number | undefined {
  if (!/^\d{1,10}$/.test(text)) return undefined;
  const value = Number(text);
  return value <= maxId ? value : undefined;
}

function cut(text: string): string {
  return text.slice(0, 64);
}
