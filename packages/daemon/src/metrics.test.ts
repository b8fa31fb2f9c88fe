import assert from "node:assert/strict";
import { test } from "node:test";
import { Metrics } from "./metrics.ts";

test("counters, gauges and histograms render in Prometheus' format", () => {
  const metrics = new Metrics();
  const calls = metrics.counter("calls_total", "Calls.");
  calls.inc({ method: 'a"b\\c\nd' });
  calls.inc({ method: 'a"b\\c\nd' }, 2);
  metrics.gauge("vms", "VMs.").set(3);
  metrics.gauge("vms", "VMs.").add(-1);
  const seconds = metrics.histogram("seconds", "Duration.", [0.1, 1]);
  for (const value of [0.05, 0.1, 0.5, 7]) seconds.observe(value, { kind: "x" });
  metrics.onCollect(() => metrics.gauge("now", "Read on collection.").set(42));
  const text = metrics.render();
  assert.match(
    text,
    /# HELP calls_total Calls\.\n# TYPE calls_total counter\ncalls_total\{method="a\\"b\\\\c\\nd"\} 3\n/,
  );
  assert.match(text, /\nvms 2\n/);
  assert.match(text, /seconds_bucket\{kind="x",le="0.1"\} 2\n/);
  assert.match(text, /seconds_bucket\{kind="x",le="1"\} 3\n/);
  assert.match(text, /seconds_bucket\{kind="x",le="\+Inf"\} 4\n/);
  assert.match(text, /seconds_sum\{kind="x"\} 7.65\nseconds_count\{kind="x"\} 4\n/);
  assert.match(text, /\nnow 42\n/);
});

test("labels from outside cannot exhaust memory", () => {
  const metrics = new Metrics();
  const counter = metrics.counter("c_total", "C.");
  const histogram = metrics.histogram("h", "H.");
  for (let i = 0; i < 5000; i++) {
    counter.inc({ user: String(i) });
    histogram.observe(1, { user: String(i) });
  }
  const text = metrics.render();
  assert.equal(text.match(/^c_total\{/gm)?.length, 2000);
  assert.match(text, /unkey_metrics_dropped_total 6000/);
});

test("a name has one type", () => {
  const metrics = new Metrics();
  metrics.counter("x_total", "X.");
  assert.throws(() => metrics.gauge("x_total", "X."), /already a counter/);
  assert.throws(() => metrics.counter("Bad-Name", "X."), /no metric name/);
});
