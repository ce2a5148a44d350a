//! Replays the corpus: no target panics on what it holds, and the corpus is worth replaying.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)] // a test that fails may panic

use std::time::Duration;

use coracle_fuzz::TARGETS;
use coracle_fuzz::run::{corpus, inputs, judge, run};

#[test]
fn no_decoder_panics_on_the_corpus_and_each_accepts_its_samples() {
    for target in &TARGETS {
        for sample in (target.samples)() {
            assert_eq!((target.judge)(&sample), Ok(()), "a sample of {}", target.name);
        }
        for (at, input) in inputs(target).unwrap().iter().enumerate() {
            assert!(judge(target, input).is_some(), "{} panics on its input {at}", target.name);
        }
    }
}

/// Each of these made a decoder panic, overflow or ask for all memory, or passed, before it was refused.
#[test]
fn what_fuzzing_found_is_refused() {
    let changed = |name: &str, at: usize, bytes: &[u8]| {
        let target = TARGETS.iter().find(|target| target.name == name).unwrap();
        let mut input = (target.samples)().remove(0);
        input.splice(at..at + bytes.len(), bytes.iter().copied());
        (target.fix)(&mut input);
        (target.judge)(&input)
    };
    let largest = u64::MAX.to_le_bytes();
    // More records than bytes: 400 GB were asked for to hold them.
    assert_eq!(changed("wal-batch", 40, &largest[..4]), Err("no header".into()));
    // A batch number that no sum can go on from.
    assert_eq!(changed("wal-batch", 16, &largest), Err("no header".into()));
    assert_eq!(changed("wal-batch", 16, &[0; 8]), Err("no header".into()));
    // An index next to which there is no other.
    assert!(changed("run", 16, &largest).is_err());
    // A head of the last start that there can be.
    assert_eq!(changed("wal-head", 80, &largest), Err("bad".into()));
    // Bytes behind a run in its record.
    let records = TARGETS.iter().find(|target| target.name == "wal-records").unwrap();
    let run = TARGETS.iter().find(|target| target.name == "run").unwrap();
    let body = [(run.samples)().remove(0), vec![0; 8]].concat();
    let mut record = vec![1, 1, 0, 0];
    record.extend((body.len() as u32).to_le_bytes());
    record.extend(body);
    assert_eq!((records.judge)(&record), Err("record has an impossible length".into()));
}

#[test]
fn every_folder_of_the_corpus_is_a_targets() {
    let dir = corpus(&TARGETS[0]);
    for entry in std::fs::read_dir(dir.parent().unwrap()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(TARGETS.iter().any(|target| target.name == name), "corpus/{name} is no target's");
    }
}

#[test]
fn a_target_that_panics_is_noticed_with_the_input() {
    let mut broken = TARGETS[0];
    broken.judge = |bytes| {
        assert!(!bytes.contains(&0xFF), "planted");
        Ok(())
    };
    let (found, _) = run(&broken, 1, Duration::from_secs(20)).unwrap();
    assert!(found.crash.is_some_and(|bytes| bytes.contains(&0xFF)), "{} inputs", found.executions);
}

#[test]
fn mutations_with_checksums_made_right_get_past_them() {
    for target in TARGETS.iter().filter(|target| ["frames", "identity", "wal-batch"].contains(&target.name)) {
        let (found, _) = run(target, 1, Duration::from_millis(300)).unwrap();
        assert!(found.crash.is_none(), "{}", target.name);
        assert!(
            found.accepted * 50 > found.executions,
            "{}: {} of {}",
            target.name,
            found.accepted,
            found.executions
        );
    }
}
