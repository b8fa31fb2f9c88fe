export {
  type Durability,
  isSqlError,
  type Migration,
  type Sql,
  SqlError,
  type SqlErrorKind,
  type SqlReadOptions,
  type SqlRow,
  type SqlStatements,
  type SqlValue,
} from "./sql.ts";
export { openSqlite, type SqliteOptions } from "./sqlite.ts";
