//! What was taken from somebody stays taken, however late the somebody's request comes.

use domain::{audit::ActorKind, credential::CredentialKind, permission::Permission};
use zeroize::Zeroizing;

use super::*;
use crate::{Credential, Given, InvitationStatus, NewCredential, PageRequest, Scoped};

impl Fixture {
    /// The publisher's handle.
    fn scoped_to(&self, publisher: PublisherId) -> Scoped {
        self.store.scoped(&Scope::of_row(publisher.uuid(), None))
    }
}

/// The context of a request that was let in with this permission.
fn let_in(actor: Actor, permission: Permission) -> Context {
    Context {
        actor,
        permission: Some(permission),
        ..context()
    }
}

fn token_actor(credential: &Credential) -> Actor {
    Actor {
        kind: ActorKind::Admin,
        id: credential.id.to_string(),
    }
}

async fn mint(scoped: &Scoped, by: &Context) -> Result<Credential, StoreError> {
    let made = std::sync::Mutex::new(None);
    let keep = |minted: &crate::Minted| {
        *made.lock().unwrap() = Some(minted.credential.clone());
        no_content()
    };
    let (kind, new) = (CredentialKind::Admin, NewCredential::default());
    scoped.credentials().mint(by, kind, new, keep).await?;
    Ok(made.into_inner().unwrap().unwrap())
}

async fn invite(scoped: &Scoped, by: &Context, to: &str, role: Role) -> Result<(), StoreError> {
    let new = NewInvitation {
        address: address(to),
        role,
        hash: TokenHash::of(to),
        mail: mail(to),
    };
    scoped.members().invite(by, &new, |_| no_content()).await?;
    Ok(())
}

/// A publisher with an owner, and a member with the role admin.
async fn staffed(fixture: &Fixture) -> (Scoped, User, User) {
    let (publisher, owner) = fixture.owner("acme", "ada@a.example").await;
    let scoped = fixture.scoped_to(publisher);
    invite(&scoped, &context_of(&owner), "eve@a.example", Role::Admin)
        .await
        .unwrap();
    let (identity, hash) = (fixture.store.identity(), TokenHash::of("eve@a.example"));
    let (by, new) = (context(), session("eve"));
    let accepted = identity.accept_invitation(&by, &hash, &new).await;
    let eve = accepted.unwrap().sign_in.unwrap().user;
    (scoped, owner, eve)
}

#[tokio::test]
async fn who_was_let_in_and_then_removed_changes_nothing() {
    for fixture in engines().await {
        let (scoped, owner, eve) = staffed(&fixture).await;
        let late = let_in(Actor::user(eve.id), Permission::CredentialsWrite);
        let token = mint(&scoped, &late).await.unwrap();
        assert_eq!(token.minted_by, Some(eve.id));
        // What the token creates is the person's, too.
        let by_token = let_in(token_actor(&token), Permission::CredentialsWrite);
        let second = mint(&scoped, &by_token).await.unwrap();
        assert_eq!(second.minted_by, Some(eve.id));
        // So is what it offers.
        let offers = let_in(token_actor(&second), Permission::InvitationsWrite);
        invite(&scoped, &offers, "eve@b.example", Role::Admin)
            .await
            .unwrap();

        let members = scoped.members();
        let (by, how) = (context_of(&owner), (true, None));
        let removed = members.remove_member(&by, eve.id, how, |gone| {
            assert_eq!(gone.minted.len(), 2, "both tokens are listed");
            no_content()
        });
        removed.await.unwrap();
        let code = |result: Result<Credential, StoreError>| code_of(&result);
        assert_eq!(code(mint(&scoped, &late).await), Some(Code::NotFound));
        for late in [&token, &second] {
            let by = let_in(token_actor(late), Permission::CredentialsWrite);
            assert_eq!(code(mint(&scoped, &by).await), Some(Code::Unauthenticated));
        }
        let page = PageRequest {
            limit: 10,
            after: None,
        };
        let all = members.invitations(page).await.unwrap().items;
        let offered = all
            .iter()
            .find(|one| one.address == address("eve@b.example"));
        assert_eq!(offered.unwrap().status, InvitationStatus::Revoked);
    }
}

#[tokio::test]
async fn who_was_let_in_and_then_demoted_or_disabled_changes_nothing() {
    for fixture in engines().await {
        let (scoped, owner, eve) = staffed(&fixture).await;
        let late = let_in(Actor::user(eve.id), Permission::CredentialsWrite);
        let members = scoped.members();
        let by = context_of(&owner);
        let demoted = members.change_role(&by, eve.id, Role::Viewer, None, |_| no_content());
        demoted.await.unwrap();
        let result = mint(&scoped, &late).await;
        assert_eq!(code_of(&result), Some(Code::RoleTooLow));
        let identity = fixture.store.identity();
        identity.set_user_enabled(&by, eve.id, false).await.unwrap();
        let result = mint(&scoped, &late).await;
        assert_eq!(code_of(&result), Some(Code::UserDisabled));
    }
}

#[tokio::test]
async fn a_revoked_token_that_was_let_in_before_changes_nothing() {
    for fixture in engines().await {
        let made = fixture.publisher("acme").await;
        let scoped = fixture.scoped_to(made.publisher.id);
        let by_first = let_in(
            token_actor(&made.admin.credential),
            Permission::CredentialsWrite,
        );
        let second = mint(&scoped, &by_first).await.unwrap();
        assert_eq!(second.minted_by, None);
        let by_second = let_in(token_actor(&second), Permission::CredentialsWrite);
        let (handle, kind) = (scoped.credentials(), CredentialKind::Admin);
        let revoked = handle.revoke(&by_first, kind, second.id, |()| no_content());
        revoked.await.unwrap();
        let result = mint(&scoped, &by_second).await;
        assert_eq!(code_of(&result), Some(Code::Unauthenticated));
        assert!(mint(&scoped, &by_first).await.is_ok());
    }
}

#[tokio::test]
async fn a_persons_token_makes_nobody_an_owner_where_there_is_none() {
    for fixture in engines().await {
        let (scoped, owner, eve) = staffed(&fixture).await;
        let by_eve = let_in(Actor::user(eve.id), Permission::CredentialsWrite);
        let token = mint(&scoped, &by_eve).await.unwrap();
        // As if the publisher had never had an owner.
        let gone = format!(
            "DELETE FROM memberships WHERE user_id = {}",
            literal(&fixture, owner.id.uuid())
        );
        fixture.execute(&gone).await;
        let by_token = let_in(token_actor(&token), Permission::InvitationsWrite);
        let refused = invite(&scoped, &by_token, "eve@b.example", Role::Owner).await;
        assert_eq!(code_of(&refused), Some(Code::RoleTooLow));
    }
}

#[tokio::test]
async fn what_was_given_at_a_registration_counts_in_its_browser_alone() {
    for fixture in engines().await {
        let identity = fixture.store.identity();
        for (name, other, has_password) in [("ann", false, true), ("ben", true, false)] {
            let at = format!("{name}@a.example");
            let mut link = token(name, Purpose::Register, None, &at);
            link.browser = Some(TokenHash::of("asked"));
            link.payload = Some(Zeroizing::new(b"x".to_vec()));
            fixture.mailed(&link).await;
            let given = |_: &[u8]| {
                Some(Given {
                    password: Some("a hash".to_owned()),
                    name: Some("Name".to_owned()),
                })
            };
            let browser = TokenHash::of(if other { "another" } else { "asked" });
            let proof = (&link.hash, Some(&browser));
            let (by, new) = (context(), session(name));
            let done = identity.finish_registration(&by, proof, &given, &new).await;
            let user = done.unwrap().unwrap().user;
            let hash = identity.password_hash(user.id).await.unwrap();
            assert_eq!(hash.is_some(), has_password, "{name}");
            assert_eq!(user.display_name.is_some(), has_password, "{name}");
        }
    }
}

#[tokio::test]
async fn a_new_address_takes_the_person_who_asked_for_it() {
    for fixture in engines().await {
        let (ann, eve) = (
            fixture.user("ann@a.example").await,
            fixture.user("eve@a.example").await,
        );
        let identity = fixture.store.identity();
        let notice = |user: &User, _: &EmailAddress| mail(user.address.as_str());
        let link = token(
            "link",
            Purpose::ChangeAddress,
            Some(eve.id),
            "new@a.example",
        );
        fixture.mailed(&link).await;
        let by = context();
        let by_ann = identity.change_address(&by, (ann.id, &link.hash), &notice);
        let unknown = Refusal::Token(TokenFault::Unknown);
        assert_eq!(by_ann.await.unwrap().err(), Some(unknown));
        // Whoever ends all sessions ends what was begun in them, too.
        let ended = identity.end_sessions(&by, eve.id, None);
        ended.await.unwrap();
        let by_eve = identity.change_address(&by, (eve.id, &link.hash), &notice);
        let expired = Refusal::Token(TokenFault::Expired);
        assert_eq!(by_eve.await.unwrap().err(), Some(expired));
    }
}

#[tokio::test]
async fn a_password_that_was_changed_meanwhile_signs_nobody_in() {
    for fixture in engines().await {
        let ann = fixture.user("ann@a.example").await;
        let identity = fixture.store.identity();
        let (by, a, b) = (context(), session("a"), session("b"));
        let set = identity.set_password(&by, ann.id, "new", None, None);
        set.await.unwrap();
        let with_old = identity.sign_in_user(&by, (ann.id, Some("old")), &a);
        assert!(with_old.await.unwrap().is_err());
        let with_new = identity.sign_in_user(&by, (ann.id, Some("new")), &b);
        assert!(with_new.await.unwrap().is_ok());
    }
}
