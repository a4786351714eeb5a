use proptest::prelude::*;
use uuid::Uuid;

use super::*;

const NOW: Timestamp = Timestamp::from_ms(1_000_000_000);

fn account(number: u8) -> AccountId {
    AccountId::from_uuid(Uuid::from_u128(number.into()))
}

fn candidate(number: u8, priority: u16) -> Candidate {
    Candidate {
        account: account(number),
        priority,
        enabled: true,
        healthy: true,
        expires_at: None,
        resting_until: None,
        near_ceiling: false,
        excluded: false,
        renewable: false,
    }
}

fn later(seconds: u64) -> Timestamp {
    NOW.plus(Duration::from_secs(seconds))
}

#[test]
fn priority_zero_comes_first_and_identifiers_break_ties() {
    let train = [candidate(3, 1), candidate(9, 0), candidate(4, 0)];
    assert_eq!(choose(&train, NOW, None), Some(account(4)));
    assert_eq!(choose(&[], NOW, None), None);
}

#[test]
fn each_reason_keeps_an_account_from_being_lent() {
    let good = candidate(1, 0);
    let past = NOW.minus(Duration::from_secs(1));
    for (one, out) in [
        (good, None),
        (
            Candidate {
                enabled: false,
                healthy: false,
                ..good
            },
            Some(Unavailable::Disabled),
        ),
        (
            Candidate {
                healthy: false,
                ..good
            },
            Some(Unavailable::Failed),
        ),
        (
            Candidate {
                expires_at: Some(NOW),
                ..good
            },
            Some(Unavailable::Expired),
        ),
        (
            Candidate {
                expires_at: Some(past),
                renewable: true,
                ..good
            },
            None,
        ),
        (
            Candidate {
                resting_until: Some(later(1)),
                excluded: true,
                ..good
            },
            Some(Unavailable::CoolingDown(later(1))),
        ),
        (
            Candidate {
                resting_until: Some(NOW),
                ..good
            },
            None,
        ),
        (
            Candidate {
                excluded: true,
                ..good
            },
            Some(Unavailable::Excluded),
        ),
    ] {
        assert_eq!(one.out(NOW), out, "{one:?}");
        assert_eq!(choose(&[one], NOW, None).is_some(), out.is_none());
    }
}

#[test]
fn one_that_can_not_be_refreshed_is_lent_until_its_token_expires() {
    let failed = |expires_at| Candidate {
        healthy: false,
        renewable: true,
        expires_at,
        ..candidate(1, 0)
    };
    assert_eq!(failed(Some(later(1))).out(NOW), None);
    assert_eq!(failed(Some(NOW)).out(NOW), Some(Unavailable::Failed));
    assert_eq!(failed(None).out(NOW), Some(Unavailable::Failed));
}

#[test]
fn an_account_near_a_ceiling_comes_last_but_is_not_out() {
    let near = Candidate {
        near_ceiling: true,
        ..candidate(1, 0)
    };
    assert_eq!(
        choose(&[near, candidate(2, 9)], NOW, None),
        Some(account(2))
    );
    assert_eq!(choose(&[near], NOW, None), Some(account(1)));
}

#[test]
fn nine_tenths_of_any_ceiling_are_near_it() {
    let of = |tokens_5h| Ceilings {
        tokens_5h,
        ..Ceilings::default()
    };
    let used = Used::default().and(1_000_000, 90);
    assert!(!used.is_near(&Ceilings::default()));
    for (ceiling, near) in [(101, false), (100, true), (90, true), (1, true)] {
        assert_eq!(used.is_near(&of(Some(ceiling))), near, "{ceiling}");
    }
    let most = Used::default().and(u64::MAX, u64::MAX).and(1, 1);
    assert!(most.is_near(&of(Some(u64::MAX))));
    assert!(Used::default().is_near(&of(Some(0))));
}

#[test]
fn clients_keep_their_account_and_spread_over_all_of_the_first_priority() {
    let train: Vec<_> = (0..4)
        .map(|number| candidate(number, u16::from(number == 3)))
        .collect();
    let mut seen = std::collections::BTreeSet::new();
    for client in 0..100 {
        let client = format!("client-{client}");
        let chosen = choose(&train, NOW, Some(&client)).unwrap();
        assert_eq!(choose(&train, NOW, Some(&client)), Some(chosen));
        seen.insert(chosen);
    }
    assert_eq!(seen, (0..3).map(account).collect());
}

#[test]
fn reports_let_an_account_rest_for_bounded_times() {
    let seconds = |outcome: UseOutcome, asked: Option<u64>| {
        let rest = outcome.rest(asked.map(Duration::from_secs));
        rest.map(|rest| rest.as_secs())
    };
    for (outcome, asked, rest) in [
        (UseOutcome::Ok, Some(5), None),
        (UseOutcome::RateLimited, None, Some(60)),
        (UseOutcome::RateLimited, Some(0), Some(1)),
        (UseOutcome::RateLimited, Some(3600), Some(3600)),
        (UseOutcome::RateLimited, Some(u64::MAX), Some(604_800)),
        (UseOutcome::Unauthorized, Some(5), Some(300)),
        (UseOutcome::Failed, Some(5), Some(30)),
    ] {
        assert_eq!(seconds(outcome, asked), rest, "{outcome:?} {asked:?}");
    }
    for outcome in UseOutcome::ALL {
        assert_eq!(UseOutcome::parse(outcome.as_str()), Some(outcome));
    }
}

#[test]
fn the_first_return_is_that_of_whoever_rests_shortest() {
    let outs = [
        Unavailable::Disabled,
        Unavailable::CoolingDown(later(9)),
        Unavailable::CoolingDown(later(3)),
    ];
    assert_eq!(first_return(outs), Some(later(3)));
    assert_eq!(
        first_return([Unavailable::Failed, Unavailable::Excluded]),
        None
    );
}

type Facts = (([bool; 5], u16), (Option<i64>, Option<i64>));

fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
    let flags = (any::<[bool; 5]>(), 0_u16..3);
    let times = (
        proptest::option::of(-5_i64..5),
        proptest::option::of(-5_i64..5),
    );
    proptest::collection::vec((flags, times), 0..8).prop_map(|many| {
        let at = |offset: i64| Timestamp::from_ms(NOW.ms() + offset);
        let of = |(number, ((flags, priority), (expires, rests))): (u8, Facts)| {
            let [enabled, healthy, near_ceiling, excluded, renewable] = flags;
            Candidate {
                account: account(number),
                priority,
                enabled,
                healthy,
                expires_at: expires.map(at),
                resting_until: rests.map(at),
                near_ceiling,
                excluded,
                renewable,
            }
        };
        (0..).zip(many).map(of).collect()
    })
}

proptest! {
    #[test]
    fn what_is_chosen_can_be_lent_and_nothing_better_could(
        train in candidates(),
        client in proptest::option::of("[a-z]{0,4}"),
    ) {
        let usable: Vec<_> = train.iter().filter(|one| one.out(NOW).is_none()).collect();
        match choose(&train, NOW, client.as_deref()) {
            None => prop_assert!(usable.is_empty()),
            Some(chosen) => {
                let chosen = usable.iter().find(|one| one.account == chosen);
                prop_assert!(chosen.is_some());
                let rank = chosen.unwrap().rank();
                prop_assert!(usable.iter().all(|one| one.rank() >= rank));
            }
        }
    }

    #[test]
    fn the_order_in_which_accounts_are_listed_is_of_no_account(
        train in candidates(),
        client in proptest::option::of("[a-z]{0,4}"),
    ) {
        let mut reversed = train.clone();
        reversed.reverse();
        let client = client.as_deref();
        prop_assert_eq!(choose(&train, NOW, client), choose(&reversed, NOW, client));
    }

    #[test]
    fn losing_an_account_moves_only_its_own_clients(
        train in candidates(),
        client in "[a-z]{1,4}",
        lost in 0_u8..8,
    ) {
        let before = choose(&train, NOW, Some(&client));
        let left: Vec<_> = train
            .iter()
            .copied()
            .filter(|one| one.account != account(lost))
            .collect();
        let after = choose(&left, NOW, Some(&client));
        if before != Some(account(lost)) {
            prop_assert_eq!(before, after);
        }
    }
}
