//! People's rows on both engines: what is good once, what ends sessions, what is counted.

use std::{collections::BTreeMap, future::Future, time::Duration};

use domain::{
    Code,
    audit::{Action, Actor},
    id::{Id as _, PublisherId, UserId},
    people::{EmailAddress, Purpose, Role, SignInMethod},
    slug::Slug,
    token::TokenHash,
};
use sea_orm::DbBackend;
use tokio::task::JoinSet;

use crate::{
    Context, Growth, NewInvitation, NewMail, NewPasskey, NewSession, NewToken, NewUser, Proof,
    Refusal, Store, StoreError, TokenFault, User,
    fixture::{Fixture, context, engines, no_content},
    identity::Identity,
    operations::sweeps::tests::literal,
    store::{ends::End, scope::Scope, tables::TABLES},
};

mod taken_back;

const PARALLEL: usize = 20;
const MINUTE: Duration = Duration::from_mins(1);
const IDLE: Duration = Duration::from_hours(1);
const WEEK: Duration = Duration::from_hours(7 * 24);
/// How long another process may take to notice a change. It looks several times a second.
const NOTICED_WITHIN: Duration = Duration::from_secs(20);

fn address(text: &str) -> EmailAddress {
    EmailAddress::parse(text).unwrap()
}

fn mail(to: &str) -> NewMail {
    NewMail {
        to: to.to_owned(),
        subject: "Subject".to_owned(),
        text: "Text".to_owned(),
        html: "<p>Text</p>".to_owned(),
        kind: "sign_in",
        lasts: WEEK,
    }
}

fn session(name: impl std::fmt::Display) -> NewSession {
    NewSession {
        hash: TokenHash::of(&format!("session {name}")),
        method: SignInMethod::Link,
        provider: None,
        lasts: WEEK,
    }
}

fn token(text: &str, purpose: Purpose, user: Option<UserId>, to: &str) -> NewToken {
    NewToken {
        hash: TokenHash::of(text),
        purpose,
        user,
        address: Some(address(to)),
        browser: None,
        code: None,
        payload: None,
        lasts: 10 * MINUTE,
        supersedes: true,
    }
}

impl Fixture {
    async fn user(&self, at: &str) -> User {
        let new = NewUser {
            address: address(at),
            verified: true,
            display_name: None,
            staff: false,
        };
        let identity = self.store.identity();
        identity.create_user(&context(), new).await.unwrap()
    }

    async fn mailed(&self, token: &NewToken) {
        let (to, what) = (
            token.address.as_ref().unwrap(),
            (Action::SignInRequested, true),
        );
        let (identity, by, mail) = (self.store.identity(), context(), mail(to.as_str()));
        let mailed = identity.request_mail(&by, token, &mail, what);
        mailed.await.unwrap();
    }

    async fn signed_in(&self, user: &User, name: &str) -> TokenHash {
        let new = session(name);
        let identity = self.store.identity();
        let done = identity
            .sign_in_user(&context(), (user.id, None), &new)
            .await;
        done.unwrap().unwrap();
        new.hash
    }

    /// The owner of a new publisher.
    async fn owner(&self, slug: &str, at: &str) -> (PublisherId, User) {
        let publisher = self.publisher(slug).await.publisher.id;
        let user = self.user(at).await;
        self.make_owner(slug, &user).await;
        (publisher, user)
    }

    async fn make_owner(&self, slug: &str, user: &User) {
        let (identity, slug) = (self.store.identity(), Slug::parse(slug).unwrap());
        let made = identity.make_owner(&context(), user.id, &slug).await;
        made.unwrap();
    }
}

fn context_of(user: &User) -> Context {
    Context {
        actor: Actor::user(user.id),
        ..context()
    }
}

/// Does the same many times at once, as requests do.
async fn in_parallel<T, W>(fixture: &Fixture, work: impl Fn(Identity, usize) -> W) -> Vec<T>
where
    T: Send + 'static,
    W: Future<Output = T> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    for at in 0..PARALLEL {
        tasks.spawn(work(fixture.store.identity(), at));
    }
    tasks.join_all().await
}

/// One succeeded, and all others heard that it was used.
fn one_won<T>(results: Vec<Result<Result<T, Refusal>, StoreError>>) {
    let (mut won, mut used) = (0, 0);
    for result in results {
        match result.unwrap() {
            Ok(_) => won += 1,
            Err(Refusal::Token(TokenFault::Used)) => used += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!((won, used), (1, PARALLEL - 1));
}

fn code_of<T>(result: &Result<T, StoreError>) -> Option<Code> {
    match result {
        Ok(_) => None,
        Err(StoreError::Refused(problem)) => Some(problem.code),
        Err(other) => panic!("{other:?}"),
    }
}

/// One succeeded, and all others were refused with this code.
fn one_won_and_others_got<T>(results: &[Result<T, StoreError>], code: Code) {
    let codes: Vec<Option<Code>> = results.iter().map(code_of).collect();
    let won = codes.iter().filter(|found| found.is_none()).count();
    let refused = codes.iter().filter(|found| **found == Some(code)).count();
    assert_eq!((won, refused), (1, results.len() - 1), "{codes:?}");
}

/// Inserts a row of everything that a person can have; the user's identifier is the publisher's.
/// What a job removes has ended long ago.
pub(crate) async fn furnish_person(fixture: &Fixture, publisher: PublisherId) {
    let id = publisher.uuid();
    let (own, simple) = (literal(fixture, id), id.simple());
    let bytes = match fixture.store.backend() {
        DbBackend::Sqlite => format!("x'{simple}'"),
        _ => format!("'\\x{simple}'::bytea"),
    };
    for sql in [
        format!(
            "users (id, staff, revision, created_at, updated_at) VALUES ({own}, FALSE, 1, 1, 1)"
        ),
        format!(
            "user_addresses (address, user_id, is_primary, verified_at, created_at) VALUES ('{simple}@a.example', {own}, TRUE, 1, 1)"
        ),
        format!(
            "user_identities (provider, subject, user_id, created_at, last_used_at) VALUES ('p', '{simple}', {own}, 1, 1)"
        ),
        format!("user_passwords (user_id, hash, changed_at) VALUES ({own}, 'x', 1)"),
        format!(
            "passkeys (id, user_id, credential_id, public_key, sign_count, backed_up, name, created_at) VALUES ({own}, {own}, {bytes}, {bytes}, 0, FALSE, 'key', 1)"
        ),
        format!(
            "sessions (id, hash, user_id, method, authenticated_at, created_at, last_seen_at, expires_at) VALUES ({own}, {bytes}, {own}, 'link', 1, 1, 1, 1)"
        ),
        format!(
            "single_use_tokens (hash, purpose, user_id, code_attempts, created_at, expires_at) VALUES ({bytes}, 'sign_in', {own}, 0, 1, 1)"
        ),
        format!(
            "memberships (publisher_id, user_id, role, revision, created_at, updated_at) VALUES ({own}, {own}, 'viewer', 1, 1, 1)"
        ),
        format!(
            "invitations (publisher_id, id, address, role, hash, inviter_kind, inviter_id, created_at, expires_at) VALUES ({own}, {own}, 'a@a.example', 'viewer', {bytes}, 'admin', '', 1, 1)"
        ),
        format!(
            "mails (id, kind, attempts, created_at, expires_at, next_attempt_at) VALUES ({own}, 'sign_in', 0, 1, 1, 1)"
        ),
        format!(
            "sign_in_throttles (key, count, updated_at, blocked_until) VALUES ({bytes}, 1, 1, 1)"
        ),
    ] {
        fixture.execute(&format!("INSERT INTO {sql}")).await;
    }
}

#[tokio::test]
async fn a_deleted_user_takes_along_what_is_known_of_the_person() {
    for fixture in engines().await {
        let gone = fixture.publisher("gone").await.publisher.id;
        let kept = fixture.publisher("kept").await.publisher.id;
        furnish_person(&fixture, gone).await;
        furnish_person(&fixture, kept).await;
        let identity = fixture.store.identity();
        let user = UserId::from_uuid(gone.uuid());
        identity.delete_user(&context(), user).await.unwrap();
        let with_user = TABLES
            .iter()
            .filter(|table| table.ends.iter().any(|end| matches!(end, End::WithUser)));
        let mut seen = 0;
        for table in with_user {
            let of = |id: PublisherId| {
                let id = literal(&fixture, id.uuid());
                format!("{} WHERE user_id = {id}", table.name)
            };
            assert_eq!(fixture.count(&of(gone)).await, 0, "{}", table.name);
            assert_eq!(fixture.count(&of(kept)).await, 1, "{}", table.name);
            seen += 1;
        }
        assert_eq!(seen, 7);
        assert_eq!(fixture.count("users").await, 1);
        let again = identity.delete_user(&context(), user).await;
        assert_eq!(code_of(&again), Some(Code::NotFound));
    }
}

#[tokio::test]
async fn a_link_signs_in_once() {
    for fixture in engines().await {
        let ada = fixture.user("ada@a.example").await;
        let link = token("link", Purpose::SignIn, Some(ada.id), "ada@a.example");
        fixture.mailed(&link).await;
        let results = in_parallel(&fixture, |identity, at| async move {
            let hash = TokenHash::of("link");
            let proof = Proof::Link {
                token: &hash,
                browser: None,
                confirmed: true,
            };
            let by = (proof, Purpose::SignIn);
            let new = session(at);
            let context = context();
            identity.sign_in_with_token(&context, by, false, &new).await
        })
        .await;
        one_won(results);
        assert_eq!(fixture.count("sessions").await, 1);
    }
}

#[tokio::test]
async fn a_code_signs_in_once() {
    for fixture in engines().await {
        let ada = fixture.user("ada@a.example").await;
        let link = NewToken {
            browser: Some(TokenHash::of("browser")),
            code: Some(TokenHash::of("code")),
            ..token("link", Purpose::SignIn, Some(ada.id), "ada@a.example")
        };
        fixture.mailed(&link).await;
        let results = by_code(&fixture, "code").await;
        one_won(results);
        assert_eq!(fixture.count("sessions").await, 1);
    }
}

type SignedInOrNot = Result<Result<crate::SignIn, Refusal>, StoreError>;

/// Tries a code many times at once.
async fn by_code(fixture: &Fixture, code: &'static str) -> Vec<SignedInOrNot> {
    in_parallel(fixture, move |identity, at| async move {
        let (browser, code) = (TokenHash::of("browser"), TokenHash::of(code));
        let proof = Proof::Code {
            browser: &browser,
            code: &code,
        };
        let by = (proof, Purpose::SignIn);
        let (context, new) = (context(), session(at));
        identity.sign_in_with_token(&context, by, false, &new).await
    })
    .await
}

#[tokio::test]
async fn a_code_that_was_tried_five_times_is_spent() {
    for fixture in engines().await {
        let ada = fixture.user("ada@a.example").await;
        let link = NewToken {
            browser: Some(TokenHash::of("browser")),
            code: Some(TokenHash::of("code")),
            ..token("link", Purpose::SignIn, Some(ada.id), "ada@a.example")
        };
        fixture.mailed(&link).await;
        let mut faults = BTreeMap::new();
        for result in by_code(&fixture, "wrong").await {
            let fault = result.unwrap().unwrap_err();
            *faults.entry(fault.as_str()).or_insert(0) += 1;
        }
        let used = PARALLEL - 5;
        let expected = BTreeMap::from([("unknown_token", 5), ("used_token", used)]);
        assert_eq!(faults, expected);
        for result in by_code(&fixture, "code").await {
            let fault = result.unwrap().unwrap_err();
            assert_eq!(fault, Refusal::Token(TokenFault::Used));
        }
        assert_eq!(fixture.count("sessions").await, 0);
    }
}

#[tokio::test]
async fn a_newer_link_takes_the_place_of_older_ones() {
    for fixture in engines().await {
        let ada = fixture.user("ada@a.example").await;
        for text in ["old", "new"] {
            let link = token(text, Purpose::SignIn, Some(ada.id), "ada@a.example");
            fixture.mailed(&link).await;
        }
        // Another purpose, and another person, are not concerned.
        let reset = token("reset", Purpose::Reset, Some(ada.id), "ada@a.example");
        fixture.mailed(&reset).await;
        let bob = token("bob", Purpose::SignIn, None, "bob@a.example");
        fixture.mailed(&bob).await;
        let identity = fixture.store.identity();
        for (text, purpose, fault) in [
            ("old", Purpose::SignIn, Some(TokenFault::Expired)),
            ("new", Purpose::SignIn, None),
            ("reset", Purpose::Reset, None),
            ("reset", Purpose::SignIn, Some(TokenFault::Unknown)),
            ("bob", Purpose::SignIn, None),
        ] {
            let found = identity.token(&TokenHash::of(text), purpose).await;
            assert_eq!(found.unwrap().err(), fault, "{text}");
            let taken = identity.take_token(&TokenHash::of(text), purpose).await;
            assert_eq!(taken.unwrap().err(), fault, "{text}");
        }
    }
}

#[tokio::test]
async fn a_registration_is_finished_once() {
    for fixture in engines().await {
        let link = token("link", Purpose::Register, None, "new@a.example");
        fixture.mailed(&link).await;
        let results = in_parallel(&fixture, |identity, at| async move {
            let (context, new) = (context(), session(at));
            let hash = TokenHash::of("link");
            let given = |_: &[u8]| None;
            identity
                .finish_registration(&context, (&hash, None), &given, &new)
                .await
        })
        .await;
        one_won(results);
        assert_eq!(fixture.count("users").await, 1);
        assert_eq!(fixture.count("sessions").await, 1);
    }
}

#[tokio::test]
async fn a_password_is_reset_once_and_all_sessions_end() {
    for fixture in engines().await {
        let ada = fixture.user("ada@a.example").await;
        let hash = fixture.signed_in(&ada, "before").await;
        let link = token("link", Purpose::Reset, Some(ada.id), "ada@a.example");
        fixture.mailed(&link).await;
        let results = in_parallel(&fixture, |identity, at| async move {
            let (context, hash) = (context(), TokenHash::of("link"));
            let notice = |user: &User| mail(user.address.as_str());
            let new = format!("hash {at}");
            let done = identity
                .reset_password(&context, &hash, &new, &notice)
                .await;
            done.map(|done| done.map_err(Refusal::Token))
        })
        .await;
        one_won(results);
        assert_eq!(fixture.count("sessions").await, 0);
        let live = fixture.store.signed_in(hash, IDLE).await.unwrap();
        assert!(live.is_none());
    }
}

#[tokio::test]
async fn an_address_is_changed_once() {
    for fixture in engines().await {
        let ada = fixture.user("ada@a.example").await;
        let link = token(
            "link",
            Purpose::ChangeAddress,
            Some(ada.id),
            "ada@b.example",
        );
        fixture.mailed(&link).await;
        let results = in_parallel(&fixture, |identity, _| async move {
            let (context, hash) = (context(), TokenHash::of("link"));
            let notice = |user: &User, _: &EmailAddress| mail(user.address.as_str());
            let link = (ada.id, &hash);
            identity.change_address(&context, link, &notice).await
        })
        .await;
        one_won(results);
        let identity = fixture.store.identity();
        let found = identity.user_with_address(&address("ada@b.example")).await;
        assert_eq!(found.unwrap().map(|user| user.id), Some(ada.id));
        let old = identity.user_with_address(&address("ada@a.example")).await;
        assert!(old.unwrap().is_none());
    }
}

#[tokio::test]
async fn an_invitation_is_accepted_once() {
    for fixture in engines().await {
        let (publisher, owner) = fixture.owner("acme", "ada@a.example").await;
        let scoped = fixture.store.scoped(&Scope::of_row(publisher.uuid(), None));
        let new = NewInvitation {
            address: address("new@a.example"),
            role: Role::Developer,
            hash: TokenHash::of("invitation"),
            mail: mail("new@a.example"),
        };
        let (members, by) = (scoped.members(), context_of(&owner));
        let invited = members.invite(&by, &new, |_| no_content()).await;
        invited.unwrap();
        let results = in_parallel(&fixture, |identity, at| async move {
            let (context, new) = (context(), session(at));
            let hash = TokenHash::of("invitation");
            identity.accept_invitation(&context, &hash, &new).await
        })
        .await;
        one_won_and_others_got(&results, Code::LinkUsed);
        assert_eq!(fixture.count("users").await, 2);
        assert_eq!(fixture.count("memberships").await, 2);
        assert_eq!(fixture.count("sessions").await, 1);
    }
}

#[tokio::test]
async fn of_two_uses_of_a_passkey_with_one_counter_one_counts() {
    for fixture in engines().await {
        let ada = fixture.user("ada@a.example").await;
        let new = NewPasskey {
            credential_id: vec![1; 16],
            public_key: vec![2; 64],
            sign_count: 7,
            backed_up: false,
            name: "key".to_owned(),
        };
        let identity = fixture.store.identity();
        let notice = mail("ada@a.example");
        let passkey = identity
            .add_passkey(&context(), ada.id, &new, &notice)
            .await
            .unwrap();
        let judged = passkey.clone();
        let results = in_parallel(&fixture, move |identity, _| {
            let passkey = judged.clone();
            async move { identity.use_passkey(&passkey, 8).await.unwrap() }
        })
        .await;
        assert_eq!(results.iter().filter(|used| **used).count(), 1);
        // What was judged by the old counter is too late, whatever its own counter says.
        assert!(!identity.use_passkey(&passkey, 9).await.unwrap());
        let found = identity.passkeys(ada.id).await.unwrap().remove(0);
        assert_eq!(found.sign_count, 8);
        assert!(identity.use_passkey(&found, 9).await.unwrap());
    }
}

#[tokio::test]
async fn of_two_owners_who_stop_at_once_one_stays() {
    for fixture in engines().await {
        let (publisher, ada) = fixture.owner("acme", "ada@a.example").await;
        let bob = fixture.user("bob@a.example").await;
        fixture.make_owner("acme", &bob).await;
        let stop = async |user: &User| {
            let scoped = fixture.store.scoped(&Scope::of_row(publisher.uuid(), None));
            let (members, context) = (scoped.members(), context_of(user));
            members
                .change_role(&context, user.id, Role::Admin, None, |_| no_content())
                .await
        };
        let (one, two) = tokio::join!(stop(&ada), stop(&bob));
        one_won_and_others_got(&[one, two], Code::LastOwner);

        fixture.make_owner("acme", &ada).await;
        fixture.make_owner("acme", &bob).await;
        let identity = fixture.store.identity();
        let delete = async |user: &User| identity.delete_user(&context(), user.id).await;
        let (one, two) = tokio::join!(delete(&ada), delete(&bob));
        one_won_and_others_got(&[one, two], Code::LastOwner);
        let owners = fixture.count("memberships WHERE role = 'owner'").await;
        assert_eq!(owners, 1);
    }
}

#[tokio::test]
async fn every_attempt_counts_once_in_a_throttle_and_what_is_refused_counts_for_nothing() {
    let growth = Growth {
        free: 3,
        first: Duration::from_secs(2),
        most: Duration::from_mins(5),
        forgets_after: Duration::from_hours(1),
    };
    let keys = [([1; 32], growth), ([2; 32], growth)];
    for fixture in engines().await {
        let identity = fixture.store.identity();
        for _ in 0..4 {
            assert_eq!(identity.admit(&keys).await.unwrap(), None);
        }
        let until = fixture.store.now().plus(Duration::from_secs(2));
        for _ in 0..3 {
            let refused = identity.admit(&keys).await.unwrap();
            assert_eq!(refused, Some(until), "a refusal makes no wait longer");
        }
        assert_eq!(
            identity.blocked_until(&keys[0].0).await.unwrap(),
            Some(until)
        );
        identity.forgive(&keys[0].0).await.unwrap();
        assert_eq!(identity.blocked_until(&keys[0].0).await.unwrap(), None);
        let other = identity.blocked_until(&keys[1].0).await.unwrap();
        assert_eq!(other, Some(until), "another key is not forgiven");
        identity.give_back(&keys[1..]).await.unwrap();
        assert_eq!(identity.admit(&keys[1..]).await.unwrap(), None);

        // The first of these finds no row, and no more than the free ones and one pass.
        fixture.execute("DELETE FROM sign_in_throttles").await;
        let counted = in_parallel(&fixture, move |identity, _| async move {
            identity.admit(&keys).await
        });
        let results = counted.await.into_iter().map(Result::unwrap);
        assert_eq!(results.filter(Option::is_none).count(), 4);
        let four = "sign_in_throttles WHERE count = 4";
        assert_eq!(fixture.count(four).await, 2);
        fixture.clock.advance(Duration::from_hours(1));
        assert_eq!(identity.admit(&keys).await.unwrap(), None);
        let anew = "sign_in_throttles WHERE count = 1";
        assert_eq!(fixture.count(anew).await, 2, "counting begins again");
    }
}

#[tokio::test]
async fn a_session_ends_when_it_is_idle_or_old() {
    for fixture in engines().await {
        let ada = fixture.user("ada@a.example").await;
        let (store, lives) = (&fixture.store, async |hash: TokenHash| {
            fixture.store.signed_in(hash, IDLE).await.unwrap().is_some()
        });
        let hash = fixture.signed_in(&ada, "idle").await;
        fixture.clock.advance(59 * MINUTE);
        assert!(lives(hash).await);
        fixture.clock.advance(59 * MINUTE);
        assert!(lives(hash).await, "it was used meanwhile");
        fixture.clock.advance(61 * MINUTE);
        assert!(!lives(hash).await);

        let hash = fixture.signed_in(&ada, "old").await;
        let end = store.now().plus(WEEK);
        while store.now().plus(50 * MINUTE) < end {
            fixture.clock.advance(50 * MINUTE);
            assert!(lives(hash).await);
        }
        fixture.clock.advance(50 * MINUTE);
        assert!(!lives(hash).await);
        assert!(!lives(TokenHash::of("unknown")).await);
    }
}

/// Waits until another process does not know a session any more.
async fn forgotten(other: &Store, hash: TokenHash) {
    let wait = async {
        while other.signed_in(hash, IDLE).await.unwrap().is_some() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let done = tokio::time::timeout(NOTICED_WITHIN, wait).await;
    done.expect("the other process notices");
}

#[tokio::test]
async fn what_ends_a_session_holds_in_other_processes() {
    for fixture in engines().await {
        let other = fixture.beside(&fixture.keys).await;
        let ada = fixture.user("ada@a.example").await;
        let identity = fixture.store.identity();
        for name in ["one", "all", "disabled"] {
            let hash = fixture.signed_in(&ada, name).await;
            let there = other.signed_in(hash, IDLE).await.unwrap().unwrap();
            let here = fixture.store.signed_in(hash, IDLE).await.unwrap();
            assert!(here.is_some());
            match name {
                "one" => {
                    let id = there.session.id;
                    let ended = identity.end_session(&context(), ada.id, id).await;
                    ended.unwrap();
                }
                "all" => {
                    let ended = identity.end_sessions(&context(), ada.id, None).await;
                    assert_eq!(ended.unwrap(), 1);
                }
                _ => {
                    let done = identity.set_user_enabled(&context(), ada.id, false).await;
                    assert!(!done.unwrap().is_enabled());
                }
            }
            let here = fixture.store.signed_in(hash, IDLE).await.unwrap();
            assert!(here.is_none(), "{name}: at once in this process");
            forgotten(&other, hash).await;
        }
        let (by, new) = (context(), session("again"));
        let again = identity.sign_in_user(&by, (ada.id, None), &new).await;
        assert_eq!(again.unwrap().unwrap_err(), Refusal::Disabled);
        other.close().await;
    }
}
