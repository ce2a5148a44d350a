//! Elections of a thousand groups at once: when one node dies, and when all begin anew.

use coracle::GroupId;
use coracle::sim::Role;
use coracle_io::fake::{Completing, Latency};

use crate::cluster::{Cluster, Count, Fault};

const GROUPS: u64 = 1000;

fn groups() -> impl Iterator<Item = GroupId> {
    (1..=GROUPS).map(GroupId)
}

/// How many groups each node leads, if one leads each and everybody who is there knows it.
fn leaders(cluster: &Cluster) -> Option<[usize; 3]> {
    let mut led = [0; 3];
    for group in groups() {
        let mut known = cluster.nodes.iter().flatten().map(|node| Some(node.group_status(group)?.leader));
        let leader = known.next()??;
        let leader_at = leader?.0 as usize - 1;
        if known.any(|other| other != Some(leader)) || cluster.nodes[leader_at].is_none() {
            return None;
        }
        let leads = cluster.node(leader_at).overview(group).is_some_and(|one| one.role == Role::Leader);
        led[leader_at] += usize::from(leads);
    }
    (led.iter().sum::<usize>() == GROUPS as usize).then_some(led)
}

fn start_groups(cluster: &Cluster, at: usize) {
    groups().for_each(|group| cluster.node(at).start_group(group, Box::new(Count(0, Fault::None))));
}

fn cluster() -> Cluster {
    let mut cluster = Cluster::new(3);
    cluster.disks.iter().for_each(|disk| disk.set_completing(Completing::Timed(Latency::default())));
    (0..3).for_each(|at| start_groups(&cluster, at));
    cluster.turn_until("leaders", |cluster| leaders(cluster).is_some());
    cluster
}

#[test]
fn a_thousand_groups_of_a_dead_node_elect_soon_and_in_few_batches() {
    let mut cluster = cluster();
    // Only a member that has everything can be elected.
    (0..200).for_each(|_| cluster.turn());
    groups().for_each(|group| cluster.node(0).trigger_election(group));
    cluster.turn_until("the first to lead all", |cluster| leaders(cluster) == Some([1000, 0, 0]));
    let batches =
        |cluster: &Cluster| (1..3).map(|at| cluster.node(at).wal_stats().unwrap().batches).sum::<u64>();
    let (start_us, before) = (cluster.now_us(), batches(&cluster));
    cluster.kill(0);
    cluster.turn_until("leaders", |cluster| leaders(cluster).is_some());
    let (ms, written) = ((cluster.now_us() - start_us) / 1000, batches(&cluster) - before);
    eprintln!("killed: all led after {ms} ms, {written} batches, {:?}", leaders(&cluster));
    // Before the members had an order it took up to 900 ms, and 1043 batches.
    assert!(ms < 500, "it takes {ms} ms");
    assert!(written < 500, "{written} batches");
    let led = leaders(&cluster).unwrap();
    assert!(led[0] == 0 && led[1] > 400 && led[2] > 400, "{led:?}");
}

#[test]
fn a_thousand_groups_whose_nodes_all_start_anew_are_led_by_all_of_them() {
    let mut cluster = cluster();
    (0..3).for_each(|at| cluster.kill(at));
    (0..3).for_each(|at| cluster.open(at));
    let start_us = cluster.now_us();
    cluster.turn_until("running nodes", |cluster| (0..3).all(|at| cluster.node(at).is_running()));
    (0..3).for_each(|at| start_groups(&cluster, at));
    cluster.turn_until("leaders", |cluster| leaders(cluster).is_some());
    let ms = (cluster.now_us() - start_us) / 1000;
    eprintln!("all restarted: all led after {ms} ms, {:?}", leaders(&cluster));
    assert!(ms < 400, "it takes {ms} ms");
    let led = leaders(&cluster).unwrap();
    assert!(led.iter().all(|led| (250..420).contains(led)), "{led:?}");
}
