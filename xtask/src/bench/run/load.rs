//! Rows that a run of the load generator gives.

use anyhow::{Result, bail};
use warren_load::report::Report;

use super::super::lab::net::PORT;
use super::super::lab::{Lab, extra_address};
use super::super::options::Options;
use super::super::path::Path;
use super::{Cpu, Metric, Sample, Value};

const fn metric(name: &'static str, unit: &'static str, more_is_better: bool, shown: bool) -> Metric {
    Metric { name, unit, more_is_better, shown }
}

const RATE: Metric = metric("rate", "1/s", true, true);
const P50: Metric = metric("p50", "µs", false, true);
const P90: Metric = metric("p90", "µs", false, false);
const P99: Metric = metric("p99", "µs", false, true);
const P999: Metric = metric("p99.9", "µs", false, false);
const THROUGHPUT: Metric = metric("throughput", "Gbit/s", true, true);

/// Processor time of an operation, in microseconds.
const PER_REQUEST: &str = "µs/request";
const PER_GIGABYTE: &str = "s/GB";

pub(super) fn round_trips(lab: &Lab, options: &Options, size: u32, connections: u32) -> Result<Sample> {
    let [seconds, warmup] = [options.seconds(), options.warmup()].map(|seconds| seconds.to_string());
    let (size, connections) = (size.to_string(), connections.to_string());
    let report =
        lab.run(&["rr", "--size", &size, "--connections", &connections, "--seconds", &seconds, "--warmup", &warmup])?;
    Ok(operations(&report))
}

pub(super) fn connects(lab: &Lab, options: &Options, at_once: u32) -> Result<Sample> {
    let [seconds, warmup] = [options.seconds(), options.warmup()].map(|seconds| seconds.to_string());
    let at_once = at_once.to_string();
    let report = lab.run(&["connect", "--at-once", &at_once, "--seconds", &seconds, "--warmup", &warmup])?;
    Ok(operations(&report))
}

/// Each connection goes to an address that none went to before, and so needs a
/// tunnel of its own; an Envoy pair makes a TLS connection for each in any case.
pub(super) fn handshakes(lab: &Lab, count: u32) -> Result<Sample> {
    // An idle tunnel may have been closed again meanwhile.
    let wanted = count as usize;
    let (count, spread) = (count.to_string(), count.to_string());
    let to = format!("{}:{PORT}", extra_address(0));
    let mut arguments = vec!["connect", "--at-once", "16", "--warmup", "0", "--count", &count];
    if lab.path() != Path::Envoy {
        arguments.extend(["--to", &to, "--spread", &spread]);
    }
    let report = lab.run(&arguments)?;
    let made = lab.tunnels();
    if lab.path() != Path::Envoy && made * 10 < wanted * 9 {
        bail!("{wanted} connections to as many addresses made {made} tunnels only");
    }
    Ok(operations(&report))
}

pub(super) fn streams(lab: &Lab, options: &Options, streams: u32, direction: &str) -> Result<Sample> {
    let [seconds, warmup] = [options.seconds(), options.warmup()].map(|seconds| seconds.to_string());
    let streams = streams.to_string();
    let report = lab.run(&[
        "stream",
        "--streams",
        &streams,
        "--direction",
        direction,
        "--seconds",
        &seconds,
        "--warmup",
        &warmup,
    ])?;
    Ok(throughput(&report))
}

fn operations(report: &Report) -> Sample {
    let count = report.operations as f64;
    let mut values = vec![Value { metric: RATE, value: count / report.seconds }];
    if let Some(latency) = report.latency {
        let of = [(P50, latency.p50), (P90, latency.p90), (P99, latency.p99), (P999, latency.p999)];
        values.extend(of.map(|(metric, value)| Value { metric, value }));
    }
    let cpu = Cpu { unit: PER_REQUEST, value: report.cpu_seconds * 1e6 / count };
    Sample { values, cpu: Some(cpu), note: None }
}

fn throughput(report: &Report) -> Sample {
    let bytes = report.bytes as f64;
    let values = vec![Value { metric: THROUGHPUT, value: bytes * 8.0 / 1e9 / report.seconds }];
    let cpu = Cpu { unit: PER_GIGABYTE, value: report.cpu_seconds / (bytes / 1e9) };
    Sample { values, cpu: Some(cpu), note: None }
}

#[cfg(test)]
mod tests {
    use warren_load::latency::Percentiles;

    use super::*;

    #[test]
    fn processor_time_is_told_for_one_request() {
        let latency = Some(Percentiles { p50: 40.0, p90: 50.0, p99: 60.0, p999: 70.0, max: 80.0 });
        let report = Report { seconds: 2.0, operations: 1000, cpu_seconds: 1.5, latency, ..Report::default() };
        let sample = operations(&report);
        assert_eq!(sample.cpu, Some(Cpu { unit: "µs/request", value: 1500.0 }));
        assert_eq!(sample.values.iter().map(|value| value.value).collect::<Vec<_>>(), [500.0, 40.0, 50.0, 60.0, 70.0]);
    }

    #[test]
    fn processor_time_of_streams_is_told_for_a_gigabyte() {
        let report = Report { seconds: 2.0, bytes: 5_000_000_000, cpu_seconds: 4.0, ..Report::default() };
        let sample = throughput(&report);
        assert_eq!(sample.cpu, Some(Cpu { unit: "s/GB", value: 0.8 }));
        assert_eq!(sample.values[0].value, 20.0);
    }
}
