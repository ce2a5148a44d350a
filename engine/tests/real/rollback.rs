//! A node whose machine was rolled back: its directory is a copy of some time ago, and it does not know. The others do.

use std::fs;
use std::path::Path;

use crate::damage::copy;
use crate::kills::{NODES, Shared, StopOnDrop, check};
use crate::kv::{Cluster, ready};
use crate::operator::{ask, metric};
use crate::process::{Process, free_addresses, wait_for};

fn put_back(copy_of_it: &Path, node: &Path) {
    fs::remove_dir_all(node).unwrap();
    copy(copy_of_it, node);
}

#[test]
fn an_older_copy_of_a_directory_is_noticed_and_made_up_for() {
    let mut cluster = Cluster::new(NODES, 3);
    cluster.admins = free_addresses(NODES);
    let (node, older) = (cluster.dir().join("node-1"), cluster.dir().join("older"));
    let shared = Shared::default();
    let (mut processes, addresses): (Vec<Process>, Vec<_>) = cluster.start_all().into_iter().unzip();
    addresses.into_iter().enumerate().for_each(|(node, address)| shared.set(node, Some(address)));
    std::thread::scope(|scope| {
        let _stop = StopOnDrop(&shared.stop);
        (0..4).for_each(|_| drop(scope.spawn(|| shared.increment())));
        shared.wait_for_progress("before the copy");
        shared.set(0, None);
        assert_eq!(processes[0].terminate(), Some(0));
        copy(&node, &older);
        processes[0] = cluster.start(1);
        shared.set(0, Some(ready(&mut processes[0])));
        assert_eq!(metric(cluster.admins[0], "directory_old"), Some(0));
        // What it does not acknowledge it does not forget.
        let overview = wait_for("an overview", || ask(cluster.admins[0], "GET", "/api/overview", ""));
        let uid = |group: &serde_json::Value| group["group"].as_u64();
        let groups: Vec<u64> = overview["groups"].as_array().unwrap().iter().filter_map(uid).collect();
        assert_eq!(groups.len(), 3);
        let about = |group: u64| ask(cluster.admins[0], "GET", &format!("/api/groups/{group}"), "");
        let has_leader = |group: u64| about(group)?["leader"].is_u64().then_some(());
        groups.iter().for_each(|group| wait_for("a leader that it knows", || has_leader(*group)));
        shared.wait_for_progress("that the copy does not have");
        shared.wait_for_progress("and more");
        shared.set(0, None);
        processes[0].kill();
        put_back(&older, &node);
        processes[0] = cluster.start_loud(1);
        shared.set(0, Some(ready(&mut processes[0])));
        wait_for("the copy to be noticed", || {
            (metric(cluster.admins[0], "directory_old")? == 1).then_some(())
        });
        let is_whole = |group: u64| {
            let told = about(group)?;
            (told["suspect"] == false && told["leader"].is_u64()).then_some(())
        };
        groups.into_iter().for_each(|group| wait_for("a group that is whole again", || is_whole(group)));
        // Its votes count again: without one of the others it makes a majority.
        shared.set(2, None);
        processes[2].kill();
        shared.wait_for_progress("with the node that was rolled back");
        processes[2] = cluster.start(3);
        shared.set(2, Some(ready(&mut processes[2])));
        shared.wait_for_progress("at the end");
    });
    check(&shared);
    // It knew of nothing when it was stopped in good order, and said so loudly when it was told.
    let said = processes[0].kill();
    assert!(said.contains("older copy of itself"), "{said}");
}
