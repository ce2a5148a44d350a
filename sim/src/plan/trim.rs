//! What is left out of a seed's plan: by hand, or by the search for the least that still fails. As `sim` takes it on its command
//! line, and prints it.
//!
//! Invariants: (1) an empty trim leaves a plan as it was drawn; (2) what it says on a command line is what it does.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;

use coracle_io::fake::NetRates;

use super::{Fault, Harmed, Plan};
use crate::storage;

/// Kinds of trouble that are no strike of their own: chunks, disks and moments.
const SMALL: [&str; 14] = [
    "drop",
    "duplicate",
    "reorder",
    "corrupt",
    "split",
    "reset",
    "disk_stall",
    "clock_rates",
    "ambush",
    "power_loss_after_cut",
    "power_loss_at_start",
    "churn",
    NAMES,
    "sessions",
];

/// Of all kinds, those that no count of faults tells of.
pub(crate) const UNCOUNTED: [&str; 5] = ["clock_rates", "ambush", "churn", NAMES, "sessions"];
/// Named groups that come and go.
pub(super) const NAMES: &str = "names";

/// Numbers, as ranges on a command line: `3,7..9`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Numbers(pub BTreeSet<u64>);

/// What is left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trim {
    /// Nodes beyond so many.
    pub nodes: Option<u64>,
    /// Groups beyond so many.
    pub groups: Option<u64>,
    /// What would happen after so many milliseconds.
    pub storm_ms: Option<u64>,
    /// These kinds of trouble.
    pub without: BTreeSet<&'static str>,
    /// All strikes but these, which are counted from 0.
    pub strikes: Option<Numbers>,
    /// Records of the log alone beyond so many.
    pub records: Option<u64>,
    /// Not left out, but added: kinds of faults that few seeds have by themselves.
    pub with: BTreeSet<&'static str>,
}

impl Trim {
    /// Every kind that can be left out.
    pub fn kinds() -> impl Iterator<Item = &'static str> {
        Fault::ALL.into_iter().map(|(_, name)| name).chain(SMALL).chain(storage::FAULTS)
    }

    /// What can be had in more seeds than have it, and more often.
    pub fn kinds_to_add() -> impl Iterator<Item = &'static str> {
        [Fault::OldDirectory.name(), Fault::LostWrite.name(), NAMES].into_iter()
    }

    /// Whether this kind is left out.
    pub(crate) fn is_without(&self, kind: &str) -> bool {
        self.without.contains(kind)
    }

    /// Whether the strike of this number happens.
    pub(crate) fn has_strike(&self, number: u64, fault: Fault) -> bool {
        !self.is_without(fault.name()) && self.strikes.as_ref().is_none_or(|only| only.0.contains(&number))
    }
}

impl Plan {
    /// Leaves out what is to be left out.
    pub(super) fn cut(&mut self, trim: &Trim) {
        self.nodes = self.nodes.min(trim.nodes.unwrap_or(u64::MAX)).max(1);
        self.groups = self.groups.min(trim.groups.unwrap_or(u64::MAX)).max(1);
        let storm_us = trim.storm_ms.map_or(u64::MAX, |ms| ms.saturating_mul(1000));
        self.storm_us = self.storm_us.min(storm_us);
        self.cut_churn(trim);
        self.cut_rates(trim);
        if trim.is_without(NAMES) {
            self.names_gap_us = None;
        }
        if trim.is_without("sessions") {
            self.load.sessions = 0;
        }
        for fault in [Fault::OldDirectory, Fault::LostWrite] {
            if !trim.with.contains(fault.name()) {
                continue;
            }
            self.weather.faults.extend([fault; 4]);
            if self.harmed == Harmed::Nobody && self.churn.is_none() && self.nodes >= 3 {
                self.harmed = Harmed::One((self.seed % self.nodes) as usize);
            }
        }
        if matches!(self.harmed, Harmed::One(at) if at as u64 >= self.nodes || self.nodes < 3) {
            self.harmed = Harmed::Nobody;
        }
        self.trim = trim.clone();
    }

    fn cut_churn(&mut self, trim: &Trim) {
        if trim.is_without("churn") {
            self.churn = None;
        }
        let Some(churn) = &mut self.churn else { return };
        for founders in &mut churn.founders {
            founders.retain(|founder| founder.0 <= self.nodes);
            if founders.is_empty() {
                founders.push(coracle::NodeId(1));
            }
        }
    }

    fn cut_rates(&mut self, trim: &Trim) {
        let NetRates { drop, duplicate, reorder, corrupt, split, reset } = &mut self.weather.rates;
        let rates = [
            ("drop", drop),
            ("duplicate", duplicate),
            ("reorder", reorder),
            ("corrupt", corrupt),
            ("split", split),
            ("reset", reset),
            ("disk_stall", &mut self.disk.stall_one_in),
            ("ambush", &mut self.weather.ambush_one_in),
            ("power_loss_after_cut", &mut self.weather.doubt_one_in),
            ("power_loss_at_start", &mut self.weather.fuse_at_open_one_in),
        ];
        for (kind, rate) in rates {
            if trim.is_without(kind) {
                *rate = 0;
            }
        }
        if trim.is_without("clock_rates") {
            self.clock_ppm.fill(1_000_000);
        }
    }
}

impl fmt::Display for Trim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers = [
            ("nodes", self.nodes),
            ("groups", self.groups),
            ("storm-ms", self.storm_ms),
            ("records", self.records),
        ];
        for (name, number) in numbers {
            if let Some(number) = number {
                write!(f, " --{name} {number}")?;
            }
        }
        for (name, kinds) in [("without", &self.without), ("with", &self.with)] {
            if !kinds.is_empty() {
                write!(f, " --{name} {}", Vec::from_iter(kinds.iter().copied()).join(","))?;
            }
        }
        match &self.strikes {
            Some(strikes) => write!(f, " --strikes {strikes}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for number in &self.0 {
            match ranges.last_mut().filter(|range| range.end == *number) {
                Some(range) => range.end += 1,
                None => ranges.push(*number..*number + 1),
            }
        }
        let text = ranges.iter().map(|range| match range.end - range.start {
            1 => range.start.to_string(),
            _ => format!("{}..{}", range.start, range.end),
        });
        let text = text.collect::<Vec<_>>().join(",");
        f.write_str(if text.is_empty() { "none" } else { &text })
    }
}

impl std::str::FromStr for Numbers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut numbers = BTreeSet::new();
        for part in text.split(',').filter(|part| *part != "none") {
            let number =
                |text: &str| text.trim().parse::<u64>().map_err(|error| format!("{text:?}: {error}"));
            match part.split_once("..") {
                Some((start, end)) => {
                    let range = number(start)?..number(end)?;
                    if range.end.saturating_sub(range.start) > 1_000_000 {
                        return Err(format!("{part}: more than a million numbers"));
                    }
                    numbers.extend(range);
                }
                None => drop(numbers.insert(number(part)?)),
            }
        }
        Ok(Self(numbers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_they_are_written() {
        for text in ["none", "3", "0..4", "1,3..6,9"] {
            assert_eq!(text.parse::<Numbers>().unwrap().to_string(), text);
        }
        assert!("3,x".parse::<Numbers>().is_err());
        assert!("0..99999999999".parse::<Numbers>().is_err());
    }

    #[test]
    fn a_trim_leaves_out_what_it_says_and_nothing_else() {
        let whole = Plan::draw(3, &Trim::default());
        let trim = Trim {
            nodes: Some(1),
            groups: Some(1),
            storm_ms: Some(1500),
            without: ["churn", "drop", "power_loss"].into(),
            strikes: Some("2,5".parse().unwrap()),
            ..Trim::default()
        };
        assert_eq!(
            trim.to_string(),
            " --nodes 1 --groups 1 --storm-ms 1500 --without churn,drop,power_loss --strikes 2,5"
        );
        let plan = Plan::draw(3, &trim);
        assert_eq!((plan.nodes, plan.groups, plan.storm_us), (1, 1, 1_500_000));
        assert!(plan.churn.is_none() && plan.weather.rates.drop == 0);
        assert_eq!((plan.net, plan.weather.gap_us), (whole.net, whole.weather.gap_us));
        assert!(!plan.trim.has_strike(2, Fault::PowerLoss) && plan.trim.has_strike(2, Fault::Kill));
        assert!(!plan.trim.has_strike(3, Fault::Kill));
    }
}
