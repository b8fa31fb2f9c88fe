/** Something signed or to be signed is not what it has to be; the message says which part, and is safe to show. */
export class InvalidAttestation extends Error {
  override readonly name = "InvalidAttestation";
}
