import { execFileSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";

/** Why no certificates can be made here; false when they can: for the `skip` of a test. */
export const needsOpenssl: false | string = existsSync("/usr/bin/openssl") ? false : "openssl is not installed";

export interface TestCertificate {
  readonly certificateFile: string;
  readonly keyFile: string;
  readonly certificatePem: string;
}

/** A certificate for `names` (`IP:127.0.0.1`, `DNS:x.example`) in `directory`, signed by `issuer` or, without one, by itself. */
export function makeCertificate(
  directory: string,
  name: string,
  options: { readonly issuer?: TestCertificate; readonly names?: string } = {},
): TestCertificate {
  const { issuer, names } = options;
  const [certificateFile, keyFile] = [join(directory, `${name}.pem`), join(directory, `${name}.key`)];
  const key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", keyFile];
  const signed = issuer === undefined ? [] : ["-CA", issuer.certificateFile, "-CAkey", issuer.keyFile];
  const basics = issuer === undefined ? [] : ["-addext", "basicConstraints=critical,CA:FALSE"];
  const extension = names === undefined ? [] : ["-addext", `subjectAltName=${names}`];
  execFileSync(
    "openssl",
    [
      "req",
      "-x509",
      ...key,
      "-days",
      "1",
      "-subj",
      `/CN=${name}`,
      "-out",
      certificateFile,
      ...signed,
      ...basics,
      ...extension,
    ],
    { stdio: "pipe" },
  );
  return { certificateFile, keyFile, certificatePem: readFileSync(certificateFile, "utf8") };
}
