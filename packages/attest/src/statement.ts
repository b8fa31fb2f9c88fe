import { openEnvelope, signEnvelope } from "./dsse.ts";
import { InvalidAttestation } from "./invalid-attestation.ts";
import { asArray, asObject, asString, type JsonObject, parseJsonObject } from "./json.ts";
import type { SigningKey, VerificationKey } from "./keys.ts";

/* in-toto attestations: https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md and envelope.md */

export interface Subject {
  readonly name: string;
  /** Algorithm → lower-case hex. */
  readonly digest: Readonly<Record<string, string>>;
}

export interface Statement {
  readonly subjects: readonly Subject[];
  readonly predicateType: string;
  readonly predicate: JsonObject;
}

const payloadType = "application/vnd.in-toto+json";
const statementType = "https://in-toto.io/Statement/v1";
/** What signers of container images still write; the fields that are read mean the same. */
const olderStatementType = "https://in-toto.io/Statement/v0.1";
const maxStatementBytes = 12 * 1024 * 1024;
const maxSubjects = 1024;
const maxTypeLength = 1024;
const maxNameLength = 4096;
const maxDigests = 16;

export function signStatement(statement: Statement, key: SigningKey): Buffer {
  const { subjects, predicateType, predicate } = statement;
  const payload = { _type: statementType, subject: subjects, predicateType, predicate };
  return signEnvelope(payloadType, Buffer.from(JSON.stringify(payload)), key);
}

/** The statement in an envelope that one of `keys` signed. Throws InvalidAttestation. */
export function openStatement(
  envelope: Uint8Array,
  keys: readonly VerificationKey[],
): { readonly statement: Statement; readonly key: VerificationKey } {
  const opened = openEnvelope(envelope, keys);
  if (opened.payloadType !== payloadType) {
    throw new InvalidAttestation(`the envelope holds ${JSON.stringify(opened.payloadType)}, not an in-toto statement`);
  }
  return { statement: parseStatement(opened.payload), key: opened.key };
}

/** Whether the statement is about what has this digest (sha256:<hex>). */
export function isAbout(statement: Statement, digest: string): boolean {
  const [algorithm = "", hex = ""] = digest.split(":");
  return hex !== "" && statement.subjects.some((subject) => subject.digest[algorithm] === hex);
}

function parseStatement(bytes: Uint8Array): Statement {
  const json = parseJsonObject(bytes, maxStatementBytes, "the statement");
  const type = json["_type"];
  if (type !== statementType && type !== olderStatementType) {
    throw new InvalidAttestation("the payload is not an in-toto statement of version 1");
  }
  const subjects = asArray(json["subject"], maxSubjects, "the statement's subject").map((value) => {
    const subject = asObject(value, "a subject");
    const digests = Object.entries(asObject(subject["digest"], "a subject's digest"));
    if (digests.length > maxDigests) throw new InvalidAttestation(`a subject has more than ${maxDigests} digests`);
    return {
      name: asString(subject["name"] ?? "", maxNameLength, "a subject's name"),
      digest: Object.fromEntries(digests.map(([name, hex]) => [name, asString(hex, 256, "a subject's digest")])),
    };
  });
  if (subjects.length === 0) throw new InvalidAttestation("the statement is about nothing");
  return {
    subjects,
    predicateType: asString(json["predicateType"], maxTypeLength, "the statement's predicateType"),
    predicate: asObject(json["predicate"] ?? {}, "the statement's predicate"),
  };
}
