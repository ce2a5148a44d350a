use super::*;
use crate::machine::{Effects, Entry, Machine, Wire, Wishes};

fn seats(nodes: &[u64]) -> Vec<Seat> {
    nodes.iter().map(|node| Seat { node: NodeId(*node), incarnation: 10 * node }).collect()
}

fn apply(machine: &mut NameMachine, command: &Command) -> (Vec<u8>, bool) {
    let (mut bytes, mut reply, mut wishes) = (Vec::new(), Vec::new(), Wishes::default());
    command.encode(&mut bytes);
    let entry = Entry { index: Index(1), term: coracle_base::Term(1), time_ms: 0, command: &bytes };
    machine.apply(entry, &mut Effects::new(&mut reply, &mut wishes));
    (reply, !wishes.release.is_empty())
}

fn create(machine: &mut NameMachine, name: &str, argument: &[u8], nodes: &[u64]) -> Created {
    let command = Command::Create {
        name: name.into(),
        argument: argument.to_vec(),
        of_all: false,
        founders: seats(nodes),
    };
    Created::decode(&apply(machine, &command).0).unwrap()
}

fn delete(machine: &mut NameMachine, name: &str, id: Option<GroupId>) -> Deleted {
    Deleted::decode(&apply(machine, &Command::Delete { name: name.into(), id }).0).unwrap()
}

fn made(created: Created) -> NamedGroup {
    let Created::New(group) = created else { panic!("{created:?}") };
    group
}

fn ask<R: Wire>(machine: &NameMachine, ask: &Ask) -> R {
    let (mut query, mut reply) = (Vec::new(), Vec::new());
    ask.encode(&mut query);
    machine.query(&query, &mut reply);
    R::decode(&reply).unwrap()
}

#[test]
fn a_name_is_one_groups_and_a_uid_never_comes_again() {
    let mut machine = NameMachine::default();
    let first = made(create(&mut machine, "a", b"x", &[1, 2, 3]));
    assert_eq!(
        (first.id(), first.generation(), first.members()),
        (FIRST_DRAWN, 1, vec![NodeId(1), NodeId(2), NodeId(3)])
    );
    assert_eq!(create(&mut machine, "a", b"x", &[1, 2, 3]), Created::Same(first.clone()));
    assert_eq!(create(&mut machine, "a", b"y", &[1, 2, 3]), Created::Taken(first.clone()));
    assert_eq!(create(&mut machine, "a", b"x", &[1, 2]), Created::Taken(first.clone()));
    let other = made(create(&mut machine, "b", b"", &[2]));
    assert_eq!(delete(&mut machine, "a", Some(other.id())), Deleted::Other(first.clone()));
    assert_eq!(delete(&mut machine, "a", Some(first.id())), Deleted::Gone(first.clone()));
    assert_eq!(delete(&mut machine, "a", None), Deleted::NotThere);
    let again = made(create(&mut machine, "a", b"x", &[1, 2, 3]));
    assert!(again.id() > other.id() && again.generation() == 3);
    assert_eq!(
        delete(&mut machine, "a", Some(first.id())),
        Deleted::Other(again.clone()),
        "a try that comes late"
    );
    assert_eq!(ask::<Option<NamedGroup>>(&machine, &Ask::LookUp("a".into())), Some(again));
    assert_eq!(ask::<Option<NamedGroup>>(&machine, &Ask::LookUp("c".into())), None);
}

#[test]
fn all_nodes_are_the_same_wish_though_they_are_others_by_then() {
    let mut machine = NameMachine::default();
    let wish = |machine: &mut NameMachine, of_all, nodes: &[u64]| {
        let founders = seats(nodes);
        let command = Command::Create { name: "a".into(), argument: Vec::new(), of_all, founders };
        Created::decode(&apply(machine, &command).0).unwrap()
    };
    let group = made(wish(&mut machine, true, &[1, 2, 3]));
    assert_eq!(wish(&mut machine, true, &[1, 2, 3, 4]), Created::Same(group.clone()));
    assert_eq!(wish(&mut machine, false, &[1, 2, 3]), Created::Taken(group));
}

#[test]
fn a_directory_that_may_have_forgotten_what_it_drew_passes_it_over_once_an_epoch() {
    let mut machine = NameMachine::default();
    let before = made(create(&mut machine, "a", b"", &[1]));
    let skip = |machine: &mut NameMachine, epoch| apply(machine, &Command::Skip { epoch });
    skip(&mut machine, 1);
    let after = made(create(&mut machine, "b", b"", &[1]));
    assert!(after.id().0 >= before.id().0 + (1 << 32));
    skip(&mut machine, 1);
    let next = made(create(&mut machine, "c", b"", &[1]));
    assert_eq!(next.id().0, after.id().0 + 1, "the same word twice");
    let mut snapshot = Vec::new();
    machine.snapshot(&mut snapshot);
    let mut restored = NameMachine::default();
    restored.restore(&snapshot).unwrap();
    skip(&mut restored, 1);
    assert_eq!(made(create(&mut restored, "d", b"", &[1])).id().0, after.id().0 + 2);
    (2..1 << 22).for_each(|epoch| restored.skip(epoch));
    assert_eq!(create(&mut restored, "e", b"", &[1]), Created::Full);
}

#[test]
fn what_is_no_group_is_refused_on_every_node() {
    let mut machine = NameMachine::default();
    for (name, nodes) in [("", &[1][..]), ("a\nb", &[1]), ("a", &[]), ("a", &[2, 1]), ("a", &[1, 1])] {
        assert_eq!(create(&mut machine, name, b"", nodes), Created::Refused, "{name:?} {nodes:?}");
    }
    assert!(is_name(&"n".repeat(NAME_BYTES_MAX)) && !is_name(&"n".repeat(NAME_BYTES_MAX + 1)));
    assert_eq!(machine.next(), FIRST_DRAWN, "nothing was drawn for them");
    assert!(machine.take_events().is_empty());
}

#[test]
fn members_are_what_the_later_entry_says() {
    let mut machine = NameMachine::default();
    let group = made(create(&mut machine, "a", b"", &[1, 2]));
    let say = |machine: &mut NameMachine, index, nodes: &[u64]| {
        apply(machine, &Command::Members { id: group.id(), index: Index(index), members: seats(nodes) });
        ask::<Option<NamedGroup>>(machine, &Ask::LookUp("a".into())).unwrap().members()
    };
    assert_eq!(say(&mut machine, 9, &[1, 3]), [NodeId(1), NodeId(3)]);
    assert_eq!(say(&mut machine, 8, &[1, 2]), [NodeId(1), NodeId(3)], "an older word comes late");
    assert_eq!(say(&mut machine, 12, &[]), [NodeId(1), NodeId(3)], "nobody is no group");
    assert_eq!(say(&mut machine, 11, &[3]), [NodeId(3)]);
    let known = ask::<Option<NamedGroup>>(&machine, &Ask::LookUp("a".into())).unwrap();
    assert_eq!(known.founders(), seats(&[1, 2]), "who founded it stays");
    assert_eq!(
        create(&mut machine, "a", b"", &[1, 2]),
        Created::Same(known),
        "whoever its members are since"
    );
    delete(&mut machine, "a", None);
    apply(&mut machine, &Command::Members { id: group.id(), index: Index(20), members: seats(&[1]) });
    assert_eq!(machine.groups().count(), 0, "no word brings a deleted group back");
}

#[test]
fn pages_are_by_name_and_say_whether_there_is_more() {
    let mut machine = NameMachine::default();
    for name in ["b2", "a", "b1", "c", "b3", "b"] {
        create(&mut machine, name, b"", &[1]);
    }
    let page = |prefix: &str, after: &str, count| {
        let ask_for = Ask::List { prefix: prefix.into(), after: after.into(), count };
        let page: Page = ask(&machine, &ask_for);
        let names: Vec<String> = page.groups.iter().map(|group| group.name().to_owned()).collect();
        (names.join(" "), page.next)
    };
    assert_eq!(page("", "", 100), ("a b b1 b2 b3 c".into(), None));
    assert_eq!(page("b", "", 2), ("b b1".into(), Some("b1".into())));
    assert_eq!(page("b", "b1", 2), ("b2 b3".into(), None));
    assert_eq!(page("b", "z", 2), (String::new(), None));
    assert_eq!(page("x", "", 2), (String::new(), None));
}

#[test]
fn the_state_comes_back_whole_or_not_at_all() {
    let mut machine = NameMachine::default();
    made(create(&mut machine, "gone", b"", &[1]));
    delete(&mut machine, "gone", None);
    for at in 0..20 {
        create(&mut machine, &format!("name {at}"), &[at; 9], &[1, 2, u64::from(at) + 3]);
    }
    let mut bytes = Vec::new();
    machine.snapshot(&mut bytes);
    let mut other = NameMachine::default();
    create(&mut other, "old", b"", &[1]);
    other.restore(&bytes).unwrap();
    assert_eq!(other.take_events().last(), Some(&Event::All));
    assert!(other.groups().eq(machine.groups()));
    let (mut one, mut same) = (Vec::new(), Vec::new());
    assert_eq!(create(&mut other, "new", b"", &[1]), create(&mut machine, "new", b"", &[1]), "the next uid");
    machine.snapshot(&mut one);
    other.snapshot(&mut same);
    assert_eq!(one, same);
    for cut in 0..bytes.len() {
        assert!(NameMachine::default().restore(&bytes[..cut]).is_err(), "cut at {cut}");
    }
}

/// Pieces of any size, none larger than asked for, while the machine goes on: the state as it was.
#[test]
fn a_snapshot_is_made_piece_by_piece_while_names_come_and_go() {
    let mut machine = NameMachine::default();
    for nth in 0..20 {
        made(create(&mut machine, &format!("name {nth}"), &[7; 100], &[1, 2, 3]));
    }
    let mut expected = Vec::new();
    machine.snapshot(&mut expected);
    for size in [1, 7, 100, 165, 1 << 20] {
        let (mut cut, mut bytes) = (machine.snapshot_source(), Vec::new());
        loop {
            let before = bytes.len();
            let has_more = cut.next_chunk(&mut bytes, size);
            assert!(bytes.len() - before <= size);
            if !has_more {
                break;
            }
            assert_eq!(bytes.len() - before, size, "it is not done, and there was room");
            let group = made(create(&mut machine, "meanwhile", b"", &[1]));
            delete(&mut machine, "meanwhile", Some(group.id()));
            let (id, members) = (FIRST_DRAWN, seats(&[2]));
            let index = Index((bytes.len() as u64 + size as u64) << 32);
            apply(&mut machine, &Command::Members { id, index, members });
        }
        if size == 1 {
            assert_eq!(bytes, expected);
        }
        let mut copy = NameMachine::default();
        copy.restore(&bytes).unwrap();
        assert_eq!(copy.groups().count(), 20, "pieces of {size}");
    }
}

#[test]
fn its_log_is_let_go_after_as_much_as_its_state() {
    let mut machine = NameMachine::default();
    let mut releases = 0;
    for at in 0..2000 {
        let founders = seats(&[1, 2, 3]);
        let name = format!("n{}", at % 5);
        releases += u32::from(
            apply(
                &mut machine,
                &Command::Create { name: name.clone(), argument: vec![1; 40], of_all: false, founders },
            )
            .1,
        );
        releases += u32::from(apply(&mut machine, &Command::Delete { name, id: None }).1);
    }
    assert!((5..50).contains(&releases), "{releases}");
    assert_eq!(machine.take_events().len(), 4000);
}

#[test]
fn commands_questions_and_answers_come_back_and_cut_ones_do_not() {
    fn check<T: Wire + PartialEq + std::fmt::Debug>(value: &T) {
        let mut bytes = Vec::new();
        value.encode(&mut bytes);
        assert_eq!(T::decode(&bytes).as_ref(), Some(value));
        for cut in 0..bytes.len() {
            assert_eq!(T::decode(&bytes[..cut]), None, "{value:?} cut at {cut}");
        }
        bytes.push(0);
        assert_eq!(T::decode(&bytes), None, "{value:?} and a byte");
    }
    let group = made(create(&mut NameMachine::default(), "ä name", b"\0\xff", &[1, 7]));
    check(&Command::Create {
        name: "a".into(),
        argument: vec![1; ARGUMENT_BYTES_MAX],
        of_all: true,
        founders: seats(&[1]),
    });
    check(&Command::Delete { name: "a".into(), id: None });
    check(&Command::Delete { name: "a".into(), id: Some(group.id()) });
    check(&Command::Delete { name: "a".into(), id: Some(GroupId(0)) });
    check(&Command::Skip { epoch: 3 });
    check(&Command::Members { id: group.id(), index: Index(4), members: seats(&[1, 2]) });
    check(&Ask::LookUp("a".into()));
    check(&Ask::List { prefix: "p".into(), after: String::new(), count: 7 });
    check(&Ask::Nothing);
    for created in [Created::New(group.clone()), Created::Same(group.clone()), Created::Taken(group.clone())]
    {
        check(&created);
    }
    check(&Created::Full);
    check(&Created::Refused);
    [Deleted::Gone(group.clone()), Deleted::NotThere, Deleted::Other(group.clone())].iter().for_each(check);
    check(&Some(group.clone()));
    check(&None::<NamedGroup>);
    check(&Page { groups: vec![group.clone()], next: Some(group.name().into()) });
}
