//! The first five minutes: quick_start's replies, again on the same directory, and after SIGKILL at any line.

use std::path::Path;

use crate::process::Process;

fn args(dir: &Path) -> Vec<String> {
    vec!["--data-dir".to_owned(), dir.display().to_string()]
}

/// The value of `key=` in a line.
fn value<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

fn reply(line: &str) -> i64 {
    value(line, "reply")
        .and_then(|reply| reply.parse().ok())
        .unwrap_or_else(|| panic!("no reply in {line:?}"))
}

fn run(dir: &Path) -> Vec<i64> {
    let output = Process::run("quick_start", &args(dir));
    let (stdout, stderr) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{stdout}{stderr}");
    let lines: Vec<&str> = stdout.lines().collect();
    let [five, seven, one] = lines[..] else { panic!("{stdout}") };
    assert!(value(five, "leader").is_some() && value(five, "failover_ms").is_none(), "{five}");
    assert!(value(one, "failover_ms").unwrap().parse::<u64>().is_ok(), "{one}");
    assert_ne!(value(seven, "leader"), value(one, "leader"), "the leader was stopped");
    lines.into_iter().map(reply).collect()
}

#[test]
fn quick_start_counts_on_where_it_stopped() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(run(dir.path()), [5, 12, 13]);
    assert_eq!(run(dir.path()), [18, 25, 26]);
}

#[test]
fn quick_start_counts_on_after_a_kill_at_its_last_line() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::start("quick_start", &args(dir.path()));
    assert_eq!([(); 3].map(|()| reply(&process.line())), [5, 12, 13]);
    process.kill();
    assert_eq!(run(dir.path()), [18, 25, 26]);
}

#[test]
fn quick_start_never_forgets_what_it_printed() {
    const COMMANDS: [i64; 3] = [5, 7, 1];
    let dir = tempfile::tempdir().unwrap();
    let mut possible = vec![0];
    for lines in [0, 1, 2, 0, 1] {
        let mut process = Process::start("quick_start", &args(dir.path()));
        for added in &COMMANDS[..lines] {
            let reply = reply(&process.line());
            assert!(possible.contains(&(reply - added)), "{reply}, and before one of {possible:?}");
            possible = vec![reply];
        }
        process.kill();
        // The command under way at the kill may have happened.
        possible.extend(possible.clone().iter().map(|number| number + COMMANDS[lines]));
    }
    let first = run(dir.path())[0];
    assert!(possible.contains(&(first - 5)), "{first}, and before one of {possible:?}");
}
