//! How users are shown: tables for people, JSON for programs.

use domain::Timestamp;
use identity::Service;
use persistence::{OwnMembership, Passkey, ProviderIdentity, Session, Store, StoreError, User};
use serde_json::{Value, json};

use crate::text::{say, shortened, table};

/// A user as JSON.
pub(super) fn user_json(user: &User) -> Value {
    json!({
        "id": user.id.to_string(),
        "email": user.address.as_str(),
        "email_verified": user.verified_at.is_some(),
        "display_name": user.display_name,
        "staff": user.staff,
        "created_at": user.created_at.to_string(),
        "disabled_at": user.disabled_at.map(|at| at.to_string()),
    })
}

fn state(user: &User) -> String {
    let mut words = vec![if user.is_enabled() {
        "enabled"
    } else {
        "disabled"
    }];
    if user.staff {
        words.push("staff");
    }
    if user.verified_at.is_none() {
        words.push("address not verified");
    }
    words.join(", ")
}

fn name(user: &User) -> String {
    shortened(user.display_name.as_deref().unwrap_or("-"))
}

/// Prints users.
pub(super) fn list(users: &[User], json: bool) {
    if json {
        let items: Vec<Value> = users.iter().map(user_json).collect();
        say(&Value::from(items).to_string());
        return;
    }
    if users.is_empty() {
        eprintln!("there are no users");
    }
    let mut rows = vec![["EMAIL", "ID", "NAME", "STATE", "CREATED"].map(str::to_owned)];
    rows.extend(users.iter().map(|user| {
        [
            user.address.to_string(),
            user.id.to_string(),
            name(user),
            state(user),
            user.created_at.to_string(),
        ]
    }));
    table(&rows);
}

/// A user, and what belongs to the person.
pub(super) struct Shown {
    user: User,
    password: bool,
    memberships: Vec<OwnMembership>,
    identities: Vec<ProviderIdentity>,
    passkeys: Vec<Passkey>,
    sessions: Vec<Session>,
}

impl Shown {
    pub(super) async fn read(
        store: &Store,
        people: &Service,
        user: User,
    ) -> Result<Self, StoreError> {
        let (identity, id) = (store.identity(), user.id);
        Ok(Self {
            password: people.has_password(id).await?,
            memberships: identity.memberships(id).await?,
            identities: identity.identities(id).await?,
            passkeys: identity.passkeys(id).await?,
            sessions: people.sessions(id).await?,
            user,
        })
    }

    pub(super) fn print(&self, json: bool) {
        if json {
            say(&self.json().to_string());
        } else {
            self.text();
        }
    }

    fn json(&self) -> Value {
        let memberships = self.memberships.iter().map(
            |one| json!({ "publisher": one.publisher.slug.as_str(), "role": one.role.as_str() }),
        );
        let identities = self
            .identities
            .iter()
            .map(|one| json!({ "provider": one.provider, "subject": one.subject }));
        let passkeys = self.passkeys.iter().map(|one| {
            let used = one.last_used_at.map(|at| at.to_string());
            json!({ "id": one.id.to_string(), "name": one.name, "last_used_at": used })
        });
        let sessions = self.sessions.iter().map(|one| {
            json!({
                "id": one.id.to_string(),
                "method": one.method.as_str(),
                "created_at": one.created_at.to_string(),
                "last_seen_at": one.last_seen_at.to_string(),
                "expires_at": one.expires_at.to_string(),
                "address": one.client_address,
                "user_agent": one.user_agent,
            })
        });
        json!({
            "user": user_json(&self.user),
            "password": self.password,
            "memberships": memberships.collect::<Vec<_>>(),
            "identities": identities.collect::<Vec<_>>(),
            "passkeys": passkeys.collect::<Vec<_>>(),
            "sessions": sessions.collect::<Vec<_>>(),
        })
    }

    fn text(&self) {
        let user = &self.user;
        let yes = |flag: bool| if flag { "yes" } else { "no" }.to_owned();
        let at = |at: Option<Timestamp>| at.map_or_else(|| "never".to_owned(), |at| at.to_string());
        let mut rows = vec![
            ["email", user.address.as_str()].map(str::to_owned),
            ["id".to_owned(), user.id.to_string()],
            ["name".to_owned(), name(user)],
            ["state".to_owned(), state(user)],
            ["created".to_owned(), user.created_at.to_string()],
            ["password".to_owned(), yes(self.password)],
        ];
        rows.extend(self.memberships.iter().map(|one| {
            let (slug, role) = (one.publisher.slug.as_str(), one.role.as_str());
            ["member".to_owned(), format!("{role} of {slug}")]
        }));
        rows.extend(self.identities.iter().map(|one| {
            let subject = shortened(&one.subject);
            ["identity".to_owned(), format!("{} {subject}", one.provider)]
        }));
        rows.extend(self.passkeys.iter().map(|one| {
            let (label, last) = (shortened(&one.name), at(one.last_used_at));
            ["passkey".to_owned(), format!("{label}, last used: {last}")]
        }));
        rows.extend(self.sessions.iter().map(|one| {
            let agent = shortened(one.user_agent.as_deref().unwrap_or("an unnamed browser"));
            let from = one.client_address.as_deref().unwrap_or("-");
            let (method, seen) = (one.method.as_str(), one.last_seen_at);
            let words = format!("{agent} at {from}, by {method}, last seen {seen}");
            ["session".to_owned(), words]
        }));
        table(&rows);
    }
}
