import type { DescEnum, DescExtension, DescField, DescFile, DescMessage } from "@bufbuild/protobuf";
import { ScalarType } from "@bufbuild/protobuf";
import { FieldDescriptorProto_Label } from "@bufbuild/protobuf/wkt";

/**
 * Prints a descriptor as .proto source: packages, imports, enums, messages with oneofs and extension ranges, extensions.
 * Field options and comments are left out. Enough for `buf` to resolve an import whose package ships descriptors only.
 */
export function printProto(file: DescFile): string {
  const lines = [`syntax = "${file.proto.syntax || "proto2"}";`, `package ${file.proto.package};`];
  for (const dependency of file.proto.dependency) lines.push(`import "${dependency}";`);
  for (const item of file.enums) lines.push(...printEnum(item));
  for (const item of file.messages) lines.push(...printMessage(item));
  for (const item of file.extensions) {
    lines.push(`extend .${item.extendee.typeName} {`, `  ${printField(item)}`, "}");
  }
  return `${lines.join("\n")}\n`;
}

function printEnum(desc: DescEnum): string[] {
  return [`enum ${desc.name} {`, ...desc.values.map((v) => `  ${v.name} = ${v.number};`), "}"];
}

function printMessage(desc: DescMessage): string[] {
  const lines = [`message ${desc.name} {`];
  for (const nested of desc.nestedEnums) lines.push(...printEnum(nested).map(indent));
  for (const nested of desc.nestedMessages) lines.push(...printMessage(nested).map(indent));
  for (const field of desc.fields) if (!field.oneof) lines.push(indent(printField(field)));
  for (const oneof of desc.oneofs) {
    const fields = oneof.fields.map((field) => `    ${printField(field).replace(/^optional /, "")}`);
    lines.push(`  oneof ${oneof.name} {`, ...fields, "  }");
  }
  // Descriptor ranges end exclusively, source ranges inclusively; 2^29 is one past the highest field number.
  for (const { start, end } of desc.proto.extensionRange) {
    lines.push(`  extensions ${start} to ${end >= 2 ** 29 ? "max" : end - 1};`);
  }
  return [...lines, "}"];
}

function printField(field: DescField | DescExtension): string {
  const named = `${field.name} = ${field.number};`;
  if (field.fieldKind === "map") {
    return `map<${ScalarType[field.mapKey].toLowerCase()}, ${typeName(field)}> ${named}`;
  }
  const label =
    field.fieldKind === "list"
      ? "repeated"
      : field.proto.label === FieldDescriptorProto_Label.REQUIRED
        ? "required"
        : "optional";
  return `${label} ${typeName(field)} ${named}`;
}

function typeName(field: DescField | DescExtension): string {
  if (field.message) return `.${field.message.typeName}`;
  if (field.enum) return `.${field.enum.typeName}`;
  const scalar =
    field.fieldKind === "scalar" || field.fieldKind === "list" || field.fieldKind === "map" ? field.scalar : undefined;
  if (scalar === undefined) throw new Error(`${field.name}: no type`);
  return ScalarType[scalar].toLowerCase();
}

function indent(line: string): string {
  return `  ${line}`;
}
