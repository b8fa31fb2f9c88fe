export { type ChdbLog, type ChdbOptions, type ChdbServer, startChdb } from "./chdb-server.ts";
export {
  type ClickHouse,
  ClickHouseError,
  type ClickHouseErrorKind,
  type ClickHouseParams,
  type ClickHouseValue,
  isClickHouseError,
} from "./clickhouse.ts";
export { connectClickHouse, type HttpClickHouseOptions } from "./http-clickhouse.ts";
