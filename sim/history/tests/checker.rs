//! The checker is right: it accepts what a linearizable object did and refuses what none could have done. Small histories are
//! compared with a search through all orders, large ones are made to be good, and then bad.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use coracle_history::{
    Answer, Call, Model, Operation, Register, Sequence, SequenceAnswer, SequenceCall, Value, Verdict, check,
};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

type One = Operation<Call, Answer>;

const STEPS: u64 = 10_000_000;

fn value(number: u64) -> Value {
    Some(number.to_string().into_bytes())
}

/// Far apart: no sum is another one's value.
fn fresh(number: u64) -> u64 {
    1000 * (1 + number)
}

fn call(rng: &mut SmallRng, number: u64, operations: u64) -> Call {
    match rng.random_range(0..10) {
        0..4 => Call::Get,
        4..6 => Call::Set(value(fresh(number))),
        6 => Call::Set(None),
        7..9 => Call::Add(1),
        _ => {
            Call::Swap(value(fresh(rng.random_range(0..operations))), fresh(number).to_string().into_bytes())
        }
    }
}

/// What a register did that was asked by `clients` at once; one operation in `unknown_in` had no answer.
fn good(seed: u64, operations: usize, clients: usize, unknown_in: u32) -> Vec<One> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut state = Register.initial();
    let mut free_at = vec![0u64; clients];
    let mut effects: Vec<(u64, One)> = Vec::new();
    for number in 0..operations as u64 {
        let client = rng.random_range(0..clients);
        let begun = free_at[client] + rng.random_range(0..20);
        let effect = begun + rng.random_range(0..20);
        let end = effect + rng.random_range(0..20);
        free_at[client] = end + 1;
        let call = call(&mut rng, number, operations as u64);
        let is_unknown = unknown_in > 0 && rng.random_range(0..unknown_in) == 0;
        // Its effect may come late, or never.
        let effect = if is_unknown { begun + rng.random_range(0..200) } else { effect };
        let ended = (!is_unknown).then_some((end, Answer::Done));
        if !is_unknown || rng.random() {
            effects.push((effect, One { call, begun, ended }));
        } else {
            effects.push((u64::MAX, One { call, begun, ended }));
        }
    }
    effects.sort_by_key(|(at, _)| *at);
    let mut history = Vec::new();
    for (at, mut one) in effects {
        if at < u64::MAX {
            // The right answer is the one of four that the model takes.
            let says = answer(&state, &one.call);
            state = Register.step(&state, &one.call, Some(&says)).unwrap();
            one.ended = one.ended.map(|(end, _)| (end, says));
        }
        history.push(one);
    }
    history.shuffle(&mut rng);
    history
}

fn answer(state: &Value, call: &Call) -> Answer {
    match call {
        Call::Get => Answer::Value(state.clone()),
        Call::Set(_) => Answer::Done,
        Call::Swap(old, _) => Answer::Swapped(state == old),
        Call::Add(more) => {
            let before: i64 =
                state.as_ref().map_or(0, |bytes| String::from_utf8_lossy(bytes).parse().unwrap());
            Answer::Number(before + more)
        }
    }
}

/// Whether some order explains it: all are tried.
fn every_order<M: Model>(
    model: &M,
    state: &M::State,
    history: &[Operation<M::Call, M::Answer>],
    taken: u32,
) -> bool {
    let left = |taken: u32| (0..history.len()).filter(move |at| taken & 1 << at == 0);
    if left(taken).all(|at| history[at].ended.is_none()) {
        return true;
    }
    let end = |at: usize| history[at].ended.as_ref().map_or(u64::MAX, |(end, _)| *end);
    let limit = left(taken).map(end).min().unwrap();
    left(taken).filter(|at| history[*at].begun <= limit).any(|at| {
        let says = history[at].ended.as_ref().map(|(_, says)| says);
        let next = model.step(state, &history[at].call, says);
        next.is_some_and(|next| every_order(model, &next, history, taken | 1 << at))
    })
}

#[test]
fn good_histories_are_accepted() {
    for seed in 0..400 {
        let history = good(seed, 300, 5, [0, 50, 20][seed as usize % 3]);
        assert_eq!(check(&Register, &history, STEPS), Ok(()), "seed {seed}");
    }
    let long = good(7, 20_000, 8, 500);
    assert_eq!(check(&Register, &long, STEPS), Ok(()));
}

/// Each is compared with all orders; at least a thousand bad ones are among them.
#[test]
fn small_histories_are_judged_as_by_trying_every_order() {
    let (mut bad, mut sound) = (0, 0);
    for seed in 0..6000 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let operations = rng.random_range(2..8);
        let mut history = good(seed, operations, rng.random_range(1..4), 6);
        // Few values, so that lies are near the truth.
        for one in &mut history {
            let lie = rng.random_range(0..3) == 0;
            if let Some((_, Answer::Value(found))) = &mut one.ended
                && lie
            {
                *found = value(fresh(rng.random_range(0..operations as u64)));
            } else if let Some((_, Answer::Number(found))) = &mut one.ended
                && lie
            {
                *found += rng.random_range(-1..2);
            } else if let Some((_, Answer::Swapped(found))) = &mut one.ended
                && lie
            {
                *found = !*found;
            }
        }
        let expected = every_order(&Register, &Register.initial(), &history, 0);
        let found = check(&Register, &history, STEPS);
        assert_eq!(found.is_ok(), expected, "seed {seed}: {history:?}");
        assert!(!matches!(found, Err(Verdict::Undecided { .. })), "seed {seed}");
        *(if expected { &mut sound } else { &mut bad }) += 1;
    }
    assert!(bad >= 1000 && sound >= 1000, "{bad} bad, {sound} sound");
}

/// Long histories with one lie of a kind that databases tell, each refused.
#[test]
fn a_thousand_bad_histories_are_refused() {
    let mut tried = 0;
    for seed in 0.. {
        if tried == 1000 {
            break;
        }
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut history = good(seed, 120, 4, [0, 40][seed as usize % 2]);
        let told = match seed % 3 {
            0 => stale_read(&mut history, &mut rng),
            1 => lost_write(&mut history),
            _ => twice_added(&mut history),
        };
        if told {
            tried += 1;
            let verdict = check(&Register, &history, STEPS);
            assert!(matches!(verdict, Err(Verdict::Broken { .. })), "seed {seed}: {verdict:?}");
        }
    }
}

/// An `Add` is said to have come to a sum that cannot be: no number near it is in the history.
fn twice_added(history: &mut [One]) -> bool {
    let sums = history.iter_mut().filter_map(|one| match &mut one.ended {
        Some((_, Answer::Number(sum))) => Some(sum),
        _ => None,
    });
    sums.last().map(|sum| *sum += 1_000_000).is_some()
}

/// A read says what a write wrote that another write had overwritten before the read began, both having been answered.
fn stale_read(history: &mut [One], rng: &mut SmallRng) -> bool {
    let written = |one: &One| match (&one.call, &one.ended) {
        (Call::Set(Some(value)), Some((end, _))) => Some((one.begun, *end, value.clone())),
        _ => None,
    };
    let writes: Vec<_> = history.iter().filter_map(written).collect();
    let mut reads: Vec<usize> =
        (0..history.len()).filter(|at| matches!(history[*at].ended, Some((_, Answer::Value(_))))).collect();
    reads.shuffle(rng);
    for at in reads {
        let begun = history[at].begun;
        let old = writes.iter().find(|(_, end, _)| {
            writes.iter().any(|(next_begun, next_end, _)| next_begun > end && *next_end < begun)
        });
        if let (Some((.., old)), Some((_, says))) = (old, &mut history[at].ended) {
            *says = Answer::Value(Some(old.clone()));
            return true;
        }
    }
    false
}

/// A read says that nothing was ever there, after a write had been answered; and nobody removes anything.
fn lost_write(history: &mut Vec<One>) -> bool {
    history.retain(|one| matches!(one.call, Call::Set(Some(_))));
    let ends = history.iter().filter_map(|one| one.ended.as_ref().map(|(end, _)| *end));
    let Some(first) = ends.min() else { return false };
    history.push(One { call: Call::Get, begun: first + 1, ended: Some((u64::MAX - 1, Answer::Value(None))) });
    true
}

/// Some operations at once on a sequence, each told what came of it when it took effect, or what did not: each history is compared
/// with every order.
#[test]
fn small_histories_of_a_sequence_are_judged_as_by_trying_every_order() {
    let (mut bad, mut sound) = (0, 0);
    for seed in 0..3000 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut state: Vec<u64> = Vec::new();
        let mut history: Vec<Operation<SequenceCall, SequenceAnswer>> = Vec::new();
        for number in 1..rng.random_range(3..8) {
            let (call, mut says) = match rng.random_range(0..4) {
                0 | 1 => {
                    state.push(number);
                    (SequenceCall::Append(number), SequenceAnswer::Length(state.len() as u64))
                }
                2 => {
                    let taken = (!state.is_empty()).then(|| state.remove(0));
                    (SequenceCall::Take, SequenceAnswer::Taken(taken))
                }
                _ => (SequenceCall::Read, SequenceAnswer::Items(state.clone())),
            };
            match &mut says {
                _ if rng.random_range(0..4) > 0 => {}
                SequenceAnswer::Length(length) => *length += 1,
                SequenceAnswer::Taken(taken) => *taken = Some(rng.random_range(1..8)),
                SequenceAnswer::Items(items) => drop(items.pop()),
            }
            let effect = 10 * number;
            let (begun, end) =
                (effect - rng.random_range(0..30).min(effect), effect + rng.random_range(0..30));
            let ended = (rng.random_range(0..5) > 0).then_some((end, says));
            history.push(Operation { call, begun, ended });
        }
        history.shuffle(&mut rng);
        let found = check(&Sequence, &history, STEPS);
        let expected = every_order(&Sequence, &Sequence.initial(), &history, 0);
        assert_eq!(found.is_ok(), expected, "seed {seed}: {history:?}");
        *(if expected { &mut sound } else { &mut bad }) += 1;
    }
    assert!(bad >= 500 && sound >= 500, "{bad} bad, {sound} sound");
}
