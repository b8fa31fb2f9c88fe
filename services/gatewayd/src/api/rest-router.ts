import { type DescMethod, type DescService, getOption, hasOption } from "@bufbuild/protobuf";
import { type Rest, rest } from "@unkey/api/options";
import { compareTemplates, matchPath, nearTemplates, type PathTemplate, parseTemplate } from "../domain/rest-path.ts";

export interface RestRoute {
  readonly method: DescMethod;
  readonly rest: Rest;
  readonly variables: ReadonlyMap<string, string>;
}

export type RestMatch =
  | { readonly kind: "found"; readonly route: RestRoute }
  | { readonly kind: "wrong-verb"; readonly allowed: readonly string[] }
  | { readonly kind: "unknown"; readonly near: readonly string[] };

/** Finds the method that a verb and a path mean, from the `(unkey.options.v1.rest)` options of a service. */
export class RestRouter {
  readonly #entries: readonly { readonly template: PathTemplate; readonly method: DescMethod; readonly rest: Rest }[];

  constructor(service: DescService) {
    this.#entries = service.methods
      .filter((method) => hasOption(method, rest))
      .flatMap((method) => {
        const form = getOption(method, rest);
        return [form.path, ...form.aliases].map((path) => ({ template: parseTemplate(path), method, rest: form }));
      })
      .sort((a, b) => compareTemplates(a.template, b.template));
  }

  match(verb: string, path: string): RestMatch {
    const allowed = new Set<string>();
    for (const { template, method, rest: form } of this.#entries) {
      const variables = matchPath(template, path);
      if (!variables) continue;
      if (form.verb === verb) return { kind: "found", route: { method, rest: form, variables } };
      allowed.add(form.verb);
    }
    if (allowed.size > 0) return { kind: "wrong-verb", allowed: [...allowed] };
    const templates = this.#entries.map(({ template }) => template);
    return { kind: "unknown", near: [...new Set(nearTemplates(templates, path, 3))] };
  }
}
