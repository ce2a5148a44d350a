//! The same bench for a row of settings: entry sizes by entries in flight, then batch sizes, each in a fresh log. A bar on
//! stderr says how far it is, a line if that is no terminal.

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::options::Options;
use super::report::Report;
use super::{Error, run};
use crate::plot::{self, Line, Panel};

const ENTRY_BYTES: [usize; 4] = [64, 256, 1024, 4096];
const IN_FLIGHT: [u64; 3] = [64, 1024, 16_384];
const MAX_BATCH: [usize; 3] = [16 * 1024, 64 * 1024, 1024 * 1024];
/// Seconds for each setting if nothing is said.
const SECONDS: u64 = 1;

/// One setting of the row, and what it came to.
struct Point {
    options: Options,
    report: Report,
}

/// Runs all settings, draws and prints them.
pub(super) fn run_all(options: &Options) -> Result<(), Error> {
    let settings = settings(options);
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed}, {eta} left: {msg}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(settings.len() as u64).with_style(style);
    let mut points = Vec::new();
    for options in settings {
        let name = name(&options);
        let report = run(&options, &|phase| bar.set_message(format!("{name}: {phase}")))?;
        let line = format!("{name}: {:.0} entries/s, p99 {} us", report.entries_per_s(), report.p99_us());
        bar.suspend(|| eprintln!("{line}"));
        bar.inc(1);
        points.push(Point { options, report });
    }
    bar.finish_and_clear();
    if let Some(path) = &options.plot {
        let title = format!("wal-bench, strategy {}, {} groups", options.strategy, options.groups);
        plot::write(path, &title, &panels(options, &points))?;
    }
    print(&points, options.json);
    Ok(())
}

fn settings(options: &Options) -> Vec<Options> {
    let seconds = if options.entries.is_some() { None } else { Some(options.seconds.unwrap_or(SECONDS)) };
    let base = Options { seconds, sweep: false, ..options.clone() };
    let mut settings = Vec::new();
    for entry_bytes in ENTRY_BYTES {
        for in_flight in IN_FLIGHT {
            settings.push(Options { entry_bytes, in_flight, ..base.clone() });
        }
    }
    settings.extend(MAX_BATCH.map(|max_batch| Options { max_batch, ..base.clone() }));
    // Between its neighbours, so that the line of batch sizes has it, too.
    settings.push(base);
    settings
}

fn name(options: &Options) -> String {
    let Options { entry_bytes, in_flight, max_batch, .. } = options;
    format!("{entry_bytes} bytes, {in_flight} in flight, batches of {} KiB", max_batch / 1024)
}

fn panels(options: &Options, points: &[Point]) -> Vec<Panel> {
    let lines = |y: fn(&Report) -> f64| {
        let line = |bytes: usize| {
            let of =
                |point: &&Point| point.options.entry_bytes == bytes && is_in_grid(&point.options, options);
            let points = points.iter().filter(of);
            let points = points.map(|point| (point.options.in_flight as f64, y(&point.report))).collect();
            Line { name: format!("{bytes} bytes"), points }
        };
        ENTRY_BYTES.map(line).to_vec()
    };
    let mut by_batch: Vec<(f64, f64)> = points
        .iter()
        .filter(|point| !is_in_grid(&point.options, options))
        .map(|point| (point.options.max_batch as f64 / 1024.0, point.report.payload_mib_per_s()))
        .collect();
    by_batch.sort_by(|a, b| a.0.total_cmp(&b.0));
    let name = format!("{} bytes", options.entry_bytes);
    vec![
        Panel::new("MiB/s of payload", "entries in flight", lines(Report::payload_mib_per_s)),
        Panel::new("p99 in microseconds", "entries in flight", lines(Report::p99_us)),
        Panel::new("MiB/s of payload", "KiB a batch", vec![Line { name, points: by_batch }]),
    ]
}

/// Whether it is one of entry size by entries in flight, not one of the batch sizes.
fn is_in_grid(point: &Options, options: &Options) -> bool {
    point.max_batch == options.max_batch && IN_FLIGHT.contains(&point.in_flight)
}

fn print(points: &[Point], as_json: bool) {
    let best = points.iter().max_by(|a, b| a.report.entries_per_s().total_cmp(&b.report.entries_per_s()));
    let Some(best) = best else { return };
    let mut value = best.report.to_json();
    value["sweep"] = points.iter().map(|point| point.report.to_json()).collect::<Vec<Value>>().into();
    if as_json {
        println!("{value}");
    } else {
        println!("fastest: {}", name(&best.options));
        best.report.print_text(&value);
    }
}
