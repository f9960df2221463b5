//! The power of one of the servers fails in the middle of a move: the same
//! command finishes it, from whatever the disks hold then. `make power` does
//! the same a hundred times for each server.

use crate::support::program;
use lab::disk::Kind;
use lab::host::Host;
use lab::medium::Fate;
use lab::power::{PLACES, Recovery, Rig, Side, Trial, When};
use mbcopy::fault::{Point, Sabotage};

fn rig() -> Rig {
    Rig::new(&Host::new("bw1"), &Host::new("bw2"), program(), Kind::Ext4)
        .expect("two hosts of the lab get disks of their own")
}

fn trial(side: Side, when: When) -> Trial {
    Trial {
        side,
        when,
        once_more: None,
        fate: Fate::Mixed(1),
        mail: false,
        busy: false,
        lives: false,
        recovery: Recovery::Again,
        sabotage: String::new(),
    }
}

#[test]
fn a_move_is_finished_after_either_server_has_lost_its_power() {
    let mut rig = rig();
    let middle = rig.usual().unwrap().mul_f64(0.4);
    for (side, at) in [
        (Side::Source, ["RouteChanged", "RetireRenamedOne"]),
        (Side::Target, ["PublishRenamed", "PublishRecorded"]),
    ] {
        for when in [When::After(middle), When::At(at[0]), When::At(at[1])] {
            let trial = trial(side, when);
            let finding = rig.run(&trial).unwrap();
            println!("{trial}: {finding}");
            assert!(finding.violations.is_empty(), "{trial}: {finding}");
        }
    }
}

#[test]
fn a_target_that_says_prepared_before_all_is_on_its_disk_is_found_out() {
    let mut rig = rig();
    for sabotage in [Sabotage::SkipSync, Sabotage::JournalUnsynced] {
        let sabotage = sabotage.as_str().to_owned();
        let trial = Trial { sabotage, ..trial(Side::Target, When::At("Published")) };
        let finding = rig.run(&trial).unwrap();
        assert!(!finding.violations.is_empty(), "{}: {finding}", trial.sabotage);
        rig.renew().unwrap();
    }
}

#[test]
fn the_places_of_power_cuts_are_those_where_processes_can_die() {
    let names: Vec<String> = Point::STEPS.iter().map(|point| format!("{point:?}")).collect();
    let known = |place: &&str| names.iter().any(|name| name == place);
    assert_eq!(PLACES.iter().find(|place| !known(place)), None);
}
