import { conformance } from "./registry/conformance.contract.ts";
import { furtherConformance } from "./registry/conformance-more.contract.ts";
import { needsDockerRegistry, startDockerTarget, startGatewayTarget } from "./registry/targets.ts";

const ours = { start: () => startGatewayTarget(), lacks: {} };
conformance({ ...ours, name: "gatewayd over assetmanagerd, v1.1.1" });
furtherConformance({ ...ours, name: "gatewayd over assetmanagerd, beyond v1.1.1" });

// The same cases against a registry that is not ours: they ask for what registries do, not for what this one happens to.
const noReferrers = "2.8 has no referrers API";
const unchecked = "2.8 does not read Content-Range";
const unsorted = "2.8 lists tags as the disk does, whole and unsorted";
const docker = {
  start: startDockerTarget,
  skip: needsDockerRegistry,
  lacks: {
    "400 response body should contain OCI-conforming JSON message": "2.8 answers 500 to a digest that is none",
    "Out-of-order blob upload should return 416": unchecked,
    "Retry previous blob chunk should return 416": unchecked,
    "Cross-mounting without from, and automatic content discovery enabled should return a 201": "2.8 needs from",
    "References setup": noReferrers,
    "GET request to list tags should yield 200 response": unsorted,
    "GET number of tags should be limitable by `n` query parameter": unsorted,
    "GET start of tag is set by `last` query parameter": unsorted,
    "GET request to nonexistent blob should result in empty 200 response": noReferrers,
    "GET request to existing blob should yield 200": noReferrers,
    "GET request to existing blob with filter should yield 200": noReferrers,
    "GET request to missing manifest should yield 200": noReferrers,
    "References teardown": noReferrers,
    "DELETE request to manifest tag should return 202, unless tag deletion is disallowed (400/405)":
      "2.8 deletes by digest only",
    "referrers in an empty repository": noReferrers,
    "post only": "2.8 answers 202 to a whole blob by POST",
    "bad digest post only": "2.8 answers 202 to a whole blob by POST",
    "chunked out of order": unchecked,
    "put chunk out of order": unchecked,
    "range 500-0": "2.8 breaks the connection off",
    "range 5000-10000": "2.8 breaks the connection off",
    "a blob of another algorithm is refused by name": "2.8 stores sha512",
    "tag parameters": "2.8 has none",
    "non-distributable layers": "2.8 wants the hosts of their addresses allowed",
    "manifest of more than 4 MiB": "2.8 answers 400",
    "reference that is neither a tag nor a digest": "2.8 answers 404",
  },
} as const;
conformance({ ...docker, name: "Debian's docker-registry, v1.1.1" });
furtherConformance({ ...docker, name: "Debian's docker-registry, beyond v1.1.1" });
