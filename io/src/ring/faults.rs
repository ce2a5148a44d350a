//! Faults of the real disk, as told: nothing outside the process can come between it and io_uring, so tests of real
//! processes plan them inside. Only with the feature `faults`, which no shipped program has.
//!
//! ```text
//!   CORACLE_FAULTS = rule[;rule]...        rule = operation:fault[:key=value[,key=value]...]
//!
//!   operation   read, write, sync, fill (making a file: reserving its blocks and writing zeros)
//!   fault       eio; enospc (write, fill); short (read, write): a part is moved; flip (read): one bit of each block;
//!               stall: the operation begins later, by ms
//!   after=N     the first N operations of the kind go well         after_bytes=N   and the first N bytes
//!   times=N     so many are hit, instead of all                    ms=N            how long a stall is
//!   file=GLOB   only files like this, below the disk's directory   while=PATH      only while this file exists
//! ```
//!
//! Example: `write:eio:after=100,file=shard-0/*.wal;sync:stall:ms=500,while=/tmp/slow`. Of several rules that match, the
//! first one's fault comes. A failed operation has been carried out all the same: a failure says nothing about that.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use coracle_base::limits::BLOCK_BYTES;
use io_uring::types::Timespec;

use super::ops::RingOp;
use crate::DiskError;

/// Where the plan is read from.
const VARIABLE: &str = "CORACLE_FAULTS";

/// Why a plan is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PlanError {
    #[error("`{0}` is not operation:fault[:key=value,...]")]
    Shape(String),
    #[error("unknown operation `{0}`; there are read, write, sync and fill")]
    Operation(String),
    #[error("unknown fault `{0}`; there are eio, enospc, short, flip and stall")]
    Fault(String),
    #[error("a {operation} cannot meet `{fault}`")]
    Impossible { operation: &'static str, fault: String },
    #[error("unknown key `{0}`; there are after, after_bytes, times, ms, file and while")]
    Key(String),
    #[error("{key}={value} is not a number")]
    Number { key: String, value: String },
    #[error("a stall needs ms=N, and nothing else takes it")]
    Ms,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Read,
    Write,
    Sync,
    Fill,
}

impl Operation {
    const ALL: [(Self, &str); 4] =
        [(Self::Read, "read"), (Self::Write, "write"), (Self::Sync, "sync"), (Self::Fill, "fill")];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(one, _)| *one == self).map_or("", |(_, name)| name)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Fails(i32),
    Short,
    Flip,
    Stall,
}

impl Fault {
    fn parse(text: &str) -> Result<Self, PlanError> {
        Ok(match text {
            "eio" => Self::Fails(libc::EIO),
            "enospc" => Self::Fails(libc::ENOSPC),
            "short" => Self::Short,
            "flip" => Self::Flip,
            "stall" => Self::Stall,
            other => return Err(PlanError::Fault(other.to_owned())),
        })
    }

    fn may_hit(self, operation: Operation) -> bool {
        match self {
            Self::Fails(libc::ENOSPC) => matches!(operation, Operation::Write | Operation::Fill),
            Self::Fails(_) | Self::Stall => true,
            Self::Short => matches!(operation, Operation::Read | Operation::Write),
            Self::Flip => operation == Operation::Read,
        }
    }
}

/// One rule and what it has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    operation: Operation,
    fault: Fault,
    after: u64,
    after_bytes: u64,
    times: u64,
    ms: u64,
    file: Option<String>,
    while_exists: Option<PathBuf>,
}

impl FromStr for Rule {
    type Err = PlanError;

    fn from_str(text: &str) -> Result<Self, PlanError> {
        let mut parts = text.trim().splitn(3, ':');
        let (Some(operation), Some(fault)) = (parts.next(), parts.next()) else {
            return Err(PlanError::Shape(text.to_owned()));
        };
        let known = Operation::ALL.iter().find(|(_, name)| *name == operation);
        let operation = known.ok_or_else(|| PlanError::Operation(operation.to_owned()))?.0;
        let mut rule = Self {
            operation,
            fault: Fault::parse(fault)?,
            after: 0,
            after_bytes: 0,
            times: u64::MAX,
            ms: 0,
            file: None,
            while_exists: None,
        };
        if !rule.fault.may_hit(operation) {
            return Err(PlanError::Impossible { operation: operation.name(), fault: fault.to_owned() });
        }
        for pair in parts.next().into_iter().flat_map(|keys| keys.split(',')) {
            let (key, value) = pair.split_once('=').ok_or_else(|| PlanError::Shape(text.to_owned()))?;
            rule.set(key, value)?;
        }
        if (rule.fault == Fault::Stall) != (rule.ms > 0) {
            return Err(PlanError::Ms);
        }
        Ok(rule)
    }
}

impl Rule {
    fn set(&mut self, key: &str, value: &str) -> Result<(), PlanError> {
        let number =
            || value.parse().map_err(|_| PlanError::Number { key: key.to_owned(), value: value.to_owned() });
        match key {
            "after" => self.after = number()?,
            "after_bytes" => self.after_bytes = number()?,
            "times" => self.times = number()?,
            "ms" => self.ms = number()?,
            "file" => self.file = Some(value.to_owned()),
            "while" => self.while_exists = Some(value.into()),
            other => return Err(PlanError::Key(other.to_owned())),
        }
        Ok(())
    }

    /// Whether it strikes now; counts what it lets pass.
    fn strikes(&mut self, operation: Operation, path: &str, bytes: u64) -> bool {
        let concerns = operation == self.operation
            && self.file.as_ref().is_none_or(|glob| is_like(glob.as_bytes(), path.as_bytes()))
            && self.while_exists.as_ref().is_none_or(|path| path.exists());
        if !concerns || self.times == 0 {
            return false;
        }
        if self.after > 0 || self.after_bytes > bytes {
            self.after = self.after.saturating_sub(1);
            self.after_bytes = self.after_bytes.saturating_sub(bytes);
            return false;
        }
        self.times -= 1;
        true
    }
}

/// Whether a path is like a pattern, in which `*` stands for anything.
fn is_like(pattern: &[u8], path: &[u8]) -> bool {
    match pattern.split_first() {
        None => path.is_empty(),
        Some((b'*', rest)) => (0..=path.len()).any(|at| is_like(rest, &path[at..])),
        Some((byte, rest)) => {
            path.split_first().is_some_and(|(first, path)| first == byte && is_like(rest, path))
        }
    }
}

fn parse(plan: &str) -> Result<Vec<Rule>, PlanError> {
    plan.split(';').filter(|rule| !rule.trim().is_empty()).map(str::parse).collect()
}

/// The faults of one disk.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    rules: Vec<Rule>,
}

/// What an operation in flight is to meet.
#[derive(Debug, Default)]
pub(crate) struct Planned {
    fault: Option<Fault>,
    /// The operation itself, while it is stalled.
    held: Option<RingOp>,
}

impl Faults {
    /// The plan of this process.
    pub(crate) fn from_env() -> Result<Self, DiskError> {
        let Ok(plan) = std::env::var(VARIABLE) else { return Ok(Self::default()) };
        let refused = |error: PlanError| DiskError::Unsupported {
            what: format!("{VARIABLE}: {error}"),
            hint: "correct it, or unset it".into(),
        };
        let rules = parse(&plan).map_err(refused)?;
        tracing::warn!(plan, "this disk has planned faults");
        Ok(Self { rules })
    }

    /// Decides what `op` will meet, and what goes to the kernel now in its place.
    pub(crate) fn plan(&mut self, path: &Path, is_fill: bool, op: RingOp) -> (Planned, RingOp) {
        let (operation, bytes) = match &op {
            RingOp::Allocate { bytes, .. } => (Operation::Fill, *bytes),
            // Its blocks were counted when they were reserved.
            RingOp::Write(..) | RingOp::Sync { .. } if is_fill => return (Planned::default(), op),
            RingOp::Read(transfer) => (Operation::Read, (transfer.buf.len() - transfer.at) as u64),
            RingOp::Write(transfer, _) => (Operation::Write, (transfer.buf.len() - transfer.at) as u64),
            RingOp::Sync { .. } => (Operation::Sync, 0),
            _ => return (Planned::default(), op),
        };
        let path = path.to_string_lossy();
        let Some(rule) =
            self.rules.iter_mut().find_map(|rule| rule.strikes(operation, &path, bytes).then_some(rule))
        else {
            return (Planned::default(), op);
        };
        tracing::warn!(operation = operation.name(), %path, fault = ?rule.fault, "planned fault");
        let fault = Some(rule.fault);
        if rule.fault != Fault::Stall {
            return (Planned { fault, held: None }, op);
        }
        let time = Timespec::new().sec(rule.ms / 1000).nsec((rule.ms % 1000) as u32 * 1_000_000);
        (Planned { fault, held: Some(op) }, RingOp::Pause(Box::new(time)))
    }
}

impl Planned {
    /// What a completion looks like with the fault; or, after a stall, the operation that is to go to the kernel now.
    pub(crate) fn meet(&mut self, result: i32, mut op: RingOp) -> Result<(i32, RingOp), RingOp> {
        if let Some(held) = self.held.take() {
            return Err(held);
        }
        let result = match self.fault {
            Some(Fault::Fails(code)) => -code,
            // At least a block is moved: a device that moves nothing for ever is one that fails.
            Some(Fault::Short) if result > BLOCK_BYTES as i32 => {
                (result / 2 / BLOCK_BYTES as i32).max(1) * BLOCK_BYTES as i32
            }
            Some(Fault::Flip) => {
                if let RingOp::Read(transfer) = &mut op {
                    let at = transfer.at;
                    let read = &mut transfer.buf[at..at + result.max(0) as usize];
                    // In the first bytes of what begins there; a block's last ones may be padding.
                    read.chunks_mut(BLOCK_BYTES).for_each(|block| block[20.min(block.len() - 1)] ^= 1);
                }
                result
            }
            _ => result,
        };
        Ok((result, op))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_read_strictly() {
        let rules =
            parse("write:eio:after=2,file=*.wal; sync:stall:ms=1500,times=1,while=/no/such/file").unwrap();
        assert_eq!(
            (rules[0].fault, rules[0].after, rules[0].file.as_deref()),
            (Fault::Fails(libc::EIO), 2, Some("*.wal"))
        );
        assert_eq!((rules[1].operation, rules[1].ms, rules[1].times), (Operation::Sync, 1500, 1));
        assert_eq!(parse(" ; "), Ok(vec![]));
        let refused = |plan: &str, why: &str| {
            let error = parse(plan).unwrap_err().to_string();
            assert!(error.contains(why), "{plan}: {error}");
        };
        refused("write", "operation:fault");
        refused("erase:eio", "unknown operation `erase`");
        refused("write:fire", "unknown fault `fire`");
        refused("write:flip", "a write cannot meet `flip`");
        refused("sync:enospc", "a sync cannot meet `enospc`");
        refused("write:eio:often=1", "unknown key `often`");
        refused("write:eio:after=-1", "after=-1 is not a number");
        refused("write:eio:after", "operation:fault");
        refused("write:stall", "a stall needs ms");
        refused("write:eio:ms=5", "a stall needs ms");
    }

    #[test]
    fn a_rule_strikes_when_it_says() {
        let mut rule: Rule = "write:eio:after=2,times=2,file=shard-*/*.wal".parse().unwrap();
        let mut strikes = |operation, path| rule.strikes(operation, path, 4096);
        assert!(!strikes(Operation::Read, "shard-0/1.wal") && !strikes(Operation::Write, "identity"));
        let seen: Vec<bool> = (0..6).map(|_| strikes(Operation::Write, "shard-0/1.wal")).collect();
        assert_eq!(seen, [false, false, true, true, false, false]);

        let mut rule: Rule = "fill:enospc:after_bytes=10000".parse().unwrap();
        let seen: Vec<bool> = (0..4).map(|_| rule.strikes(Operation::Fill, "1.wal", 4096)).collect();
        assert_eq!(seen, [false, false, true, true], "the third would pass the bound");

        let dir = tempfile::tempdir().unwrap();
        let flag = dir.path().join("on");
        let mut rule: Rule = format!("read:eio:while={}", flag.display()).parse().unwrap();
        assert!(!rule.strikes(Operation::Read, "1.wal", 1));
        std::fs::write(&flag, "").unwrap();
        assert!(rule.strikes(Operation::Read, "1.wal", 1));
    }
}
