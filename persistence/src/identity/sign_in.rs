//! What ends in a session, and the mails that lead there. Each is one transaction: the token that
//! is used, the user who is made or found, the session, and the audit row.

use domain::{
    audit::Action,
    id::UserId,
    people::{EmailAddress, Purpose, SignInMethod},
    token::TokenHash,
};
use serde_json::json;

use crate::{
    identity::{
        Identity,
        mails::{self, NewMail},
        passwords, providers,
        sessions::{self, NewSession, Session},
        tokens::{self, NewToken, Token, TokenFault},
        users::{self, NewUser, User, about},
    },
    store::{
        Store,
        change::{Audited, Context, audit_entry},
        db::Tx,
        error::{Result, StoreError},
        scope::OPERATOR,
    },
};

/// Why somebody is not signed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The token is not good.
    Token(TokenFault),
    /// Another browser asked for the link, and this one has not confirmed.
    OtherBrowser,
    /// There is no such user, and nobody may register.
    NoUser,
    /// The user is disabled.
    Disabled,
    /// Nobody has proved to receive mail at the user's address.
    Unverified,
}

impl Refusal {
    /// The word in the audit log.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Token(TokenFault::Unknown) => "unknown_token",
            Self::Token(TokenFault::Used) => "used_token",
            Self::Token(TokenFault::Expired) => "expired_token",
            Self::OtherBrowser => "other_browser",
            Self::NoUser => "no_user",
            Self::Disabled => "user_disabled",
            Self::Unverified => "address_unverified",
        }
    }
}

/// A person who has just signed in.
#[derive(Clone, Debug)]
pub struct SignIn {
    /// The user.
    pub user: User,
    /// The new session.
    pub session: Session,
    /// Whether the user was made by this sign-in.
    pub registered: bool,
    /// What belonged to the token.
    pub payload: Option<zeroize::Zeroizing<Vec<u8>>>,
}

/// How a mailed token is presented.
#[derive(Clone, Copy, Debug)]
pub enum Proof<'a> {
    /// The link itself, in the browser that asked, or in one whose person has confirmed.
    Link {
        /// The token's hash.
        token: &'a TokenHash,
        /// The hash of what this browser holds.
        browser: Option<&'a TokenHash>,
        /// Whether the person has confirmed to sign in here, although another browser asked.
        confirmed: bool,
    },
    /// The code, in the browser that asked.
    Code {
        /// The hash of what this browser holds.
        browser: &'a TokenHash,
        /// The keyed hash of the code.
        code: &'a TokenHash,
    },
}

/// A sign-in elsewhere, as the provider vouches for it.
#[derive(Clone, Debug)]
pub struct ProviderSubject {
    /// The provider's name in the settings.
    pub provider: String,
    /// What the provider calls the person.
    pub subject: String,
    /// The verified address, if the provider names one.
    pub address: Option<EmailAddress>,
    /// A name for people.
    pub display_name: Option<String>,
}

/// What a sign-in elsewhere led to.
#[derive(Clone, Debug)]
pub enum ProviderOutcome {
    /// The person is signed in.
    SignedIn(Box<SignIn>),
    /// The person is not signed in.
    Refused(Refusal),
    /// The provider names an address of a user who has not connected this sign-in. The user has to
    /// sign in as before, and connect it.
    AddressKnown,
}

/// What a person gave when a registration began.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// The hash of a password.
    pub password: Option<String>,
    /// A name for people.
    pub name: Option<String>,
}

/// An entry of the operator's audit log about an attempt of nobody known.
fn failed<T>(
    value: T,
    refusal: Refusal,
    method: SignInMethod,
    address: Option<&EmailAddress>,
) -> Audited<T> {
    let facts = json!({
        "method": method.as_str(),
        "reason": refusal.as_str(),
        "address": address.map(EmailAddress::as_str),
    });
    let entry = audit_entry(Action::SignInFailed, "user", "", facts);
    Audited::new(value, OPERATOR, entry)
}

fn refuse_user(user: &User) -> Option<Refusal> {
    if !user.is_enabled() {
        Some(Refusal::Disabled)
    } else if user.verified_at.is_none() {
        Some(Refusal::Unverified)
    } else {
        None
    }
}

/// The user for a token that was used: the one that it was made for, the one with its address, or a
/// new one if `registers`.
async fn user_for(
    tx: &Tx,
    token: &Token,
    registers: bool,
) -> Result<std::result::Result<(User, bool), Refusal>> {
    let known = match (token.user, &token.address) {
        (Some(id), _) => users::read(tx.db(), id).await?,
        (None, Some(address)) => users::with_address(tx.db(), address).await?,
        (None, None) => None,
    };
    // Whoever has the token receives the address's mail.
    if let (Some(_), Some(address)) = (&known, &token.address) {
        users::verify(tx, address).await?;
    }
    let user = match (known, &token.address) {
        // The address may be another user's since the token was mailed.
        (Some(user), Some(address)) if user.address != *address => return Ok(Err(Refusal::NoUser)),
        (Some(user), _) => users::read(tx.db(), user.id).await?.unwrap_or(user),
        (None, Some(address)) if registers && token.user.is_none() => {
            let new = NewUser {
                address: address.clone(),
                verified: true,
                display_name: None,
                staff: false,
            };
            return Ok(Ok((users::insert(tx, &new).await?, true)));
        }
        (None, _) => return Ok(Err(Refusal::NoUser)),
    };
    Ok(match refuse_user(&user) {
        Some(refusal) => Err(refusal),
        None => Ok((user, false)),
    })
}

async fn begin(
    tx: &Tx,
    context: &Context,
    (user, registered): (User, bool),
    new: &NewSession,
    token: Option<Token>,
) -> Result<Audited<SignIn>> {
    let session = sessions::begin(tx, context, user.id, new).await?;
    let id = user.id;
    let facts = json!({
        "method": new.method.as_str(),
        "provider": new.provider,
        "session": session.id.to_string(),
    });
    let signed_in = SignIn {
        user,
        session,
        registered,
        payload: token.and_then(|token| token.payload),
    };
    let audited = about(signed_in, Action::SignInSucceeded, id, facts);
    Ok(if registered {
        let entry = audit_entry(
            Action::UserCreated,
            "user",
            id,
            json!({ "by": "registration" }),
        );
        audited.and(&[OPERATOR], entry)
    } else {
        audited
    })
}

async fn take(
    store: &Store,
    tx: &Tx,
    proof: Proof<'_>,
    purpose: Purpose,
) -> Result<std::result::Result<Token, Refusal>> {
    let taken = match proof {
        Proof::Code { browser, code } => {
            tokens::take_by_code(store, tx, (browser, code), purpose).await?
        }
        Proof::Link { token, .. } => tokens::take(store, tx, token, purpose).await?,
    };
    Ok(taken.map_err(Refusal::Token))
}

impl Identity {
    /// Stores a token and its mail in one transaction. If `delivers` is false, nothing is sent, but
    /// as much is written: how long the answer takes tells nobody whether there is a user.
    pub async fn request_mail(
        &self,
        context: &Context,
        token: &NewToken,
        mail: &NewMail,
        (action, delivers): (Action, bool),
    ) -> Result<(), StoreError> {
        let store = &self.store;
        self.change(context, |tx| async move {
            tokens::issue(store, &tx, token).await?;
            let id = mails::write(store, &tx, mail).await?;
            if !delivers {
                mails::withhold(&tx, id).await?;
            }
            let facts = json!({
                "purpose": token.purpose.as_str(),
                "address": token.address.as_ref().map(EmailAddress::as_str),
                "mailed": delivers,
            });
            let user = token.user.map(|user| user.to_string()).unwrap_or_default();
            Ok(Audited::new(
                (),
                OPERATOR,
                audit_entry(action, "user", user, facts),
            ))
        })
        .await
    }

    /// Writes a mail by itself.
    pub async fn write_mail(&self, mail: &NewMail) -> Result<(), StoreError> {
        let store = &self.store;
        self.store
            .write_for(super::PEOPLE, |tx| async move {
                mails::write(store, &tx, mail).await?;
                Ok(())
            })
            .await
    }

    /// Stores a token without a mail: the operator passes its link on.
    pub async fn issue_operator_link(
        &self,
        context: &Context,
        user: UserId,
        token: &NewToken,
    ) -> Result<(), StoreError> {
        let store = &self.store;
        self.change(context, |tx| async move {
            users::lock(&tx, user).await?;
            tokens::issue(store, &tx, token).await?;
            let facts = json!({ "purpose": token.purpose.as_str() });
            Ok(about((), Action::SignInRequested, user, facts))
        })
        .await
    }

    /// Signs a person in who presents a mailed token. If `registers`, an address of nobody becomes
    /// a new user's.
    pub async fn sign_in_with_token(
        &self,
        context: &Context,
        (proof, purpose): (Proof<'_>, Purpose),
        registers: bool,
        new: &NewSession,
    ) -> Result<std::result::Result<SignIn, Refusal>, StoreError> {
        let store = &self.store;
        let refused = self
            .change(context, |tx| async move {
                if let Proof::Link {
                    token,
                    browser,
                    confirmed: false,
                } = proof
                    && let Ok(token) =
                        tokens::look(store, tx.db(), token, (purpose, tx.now)).await?
                    && token.browser.is_some()
                    && !token.is_of_browser(browser)
                {
                    let refusal = Refusal::OtherBrowser;
                    return Ok(failed(
                        Err(refusal),
                        refusal,
                        new.method,
                        token.address.as_ref(),
                    ));
                }
                let token = match take(store, &tx, proof, purpose).await? {
                    Ok(token) => token,
                    Err(refusal) => return Ok(failed(Err(refusal), refusal, new.method, None)),
                };
                match user_for(&tx, &token, registers).await? {
                    Ok(found) => {
                        let audited = begin(&tx, context, found, new, Some(token)).await?;
                        Ok(audited.map(Ok))
                    }
                    Err(refusal) => {
                        let address = token.address.as_ref();
                        Ok(failed(Err(refusal), refusal, new.method, address))
                    }
                }
            })
            .await?;
        Ok(refused)
    }

    /// Signs in a user whom the caller has judged, by a password or a passkey. A password counts
    /// only if `password` is still its hash: whoever has changed it meanwhile has ended all
    /// sessions, and this one must not begin after that.
    pub async fn sign_in_user(
        &self,
        context: &Context,
        (user, password): (UserId, Option<&str>),
        new: &NewSession,
    ) -> Result<std::result::Result<SignIn, Refusal>, StoreError> {
        self.change(context, |tx| async move {
            users::lock(&tx, user).await?;
            if let Some(judged) = password
                && passwords::stored(&tx, user).await?.as_deref() != Some(judged)
            {
                let refusal = Refusal::Token(TokenFault::Expired);
                return Ok(failed(Err(refusal), refusal, new.method, None));
            }
            let user = users::read(tx.db(), user).await?;
            let refusal = user.as_ref().map_or(Some(Refusal::NoUser), refuse_user);
            match (user, refusal) {
                (Some(user), None) => {
                    Ok(begin(&tx, context, (user, false), new, None).await?.map(Ok))
                }
                (user, refusal) => {
                    let refusal = refusal.unwrap_or(Refusal::NoUser);
                    let address = user.as_ref().map(|user| &user.address);
                    Ok(failed(Err(refusal), refusal, new.method, address))
                }
            }
        })
        .await
    }

    /// Writes down that somebody did not get in.
    pub async fn note_failure(
        &self,
        context: &Context,
        (method, reason): (SignInMethod, &str),
        address: Option<&EmailAddress>,
        user: Option<UserId>,
    ) -> Result<(), StoreError> {
        self.change(context, |_| async move {
            let facts = json!({
                "method": method.as_str(),
                "reason": reason,
                "address": address.map(EmailAddress::as_str),
            });
            let user = user.map(|user| user.to_string()).unwrap_or_default();
            let entry = audit_entry(Action::SignInFailed, "user", user, facts);
            Ok(Audited::new((), OPERATOR, entry))
        })
        .await
    }

    /// Finishes a registration: makes the user with the password that was given when it began, and
    /// signs the person in.
    pub async fn finish_registration(
        &self,
        context: &Context,
        (token, browser): (&TokenHash, Option<&TokenHash>),
        given: &(dyn Fn(&[u8]) -> Option<Given> + Sync),
        new: &NewSession,
    ) -> Result<std::result::Result<SignIn, Refusal>, StoreError> {
        let store = &self.store;
        self.change(context, |tx| async move {
            let proof = Proof::Link {
                token,
                browser: None,
                confirmed: true,
            };
            let token = match take(store, &tx, proof, Purpose::Register).await? {
                Ok(token) => token,
                Err(refusal) => return Ok(failed(Err(refusal), refusal, new.method, None)),
            };
            let (user, registered) = match user_for(&tx, &token, true).await? {
                Ok(found) => found,
                Err(refusal) => {
                    let address = token.address.as_ref();
                    return Ok(failed(Err(refusal), refusal, new.method, address));
                }
            };
            let offered = token.payload.as_deref().and_then(|payload| given(payload));
            // Whoever began this registration may have been somebody else: what was given then counts
            // in the browser alone in which it was given, and never for a user who was there.
            let own = registered && token.is_of_browser(browser);
            if let (true, Some(Given { password, name })) = (own, offered) {
                if let Some(hash) = password {
                    passwords::set(&tx, &user, &hash, None).await?;
                }
                users::name(&tx, user.id, name.as_deref()).await?;
            }
            let user = users::read(tx.db(), user.id).await?.unwrap_or(user);
            let found = (user, registered);
            Ok(begin(&tx, context, found, new, Some(token)).await?.map(Ok))
        })
        .await
    }

    /// Signs a person in for whom a provider vouches. If `registers`, a verified address of nobody
    /// becomes a new user's.
    pub async fn sign_in_with_provider(
        &self,
        context: &Context,
        of: &ProviderSubject,
        registers: bool,
        new: &NewSession,
    ) -> Result<ProviderOutcome, StoreError> {
        self.change(context, |tx| async move {
            let key = (of.provider.as_str(), of.subject.as_str());
            let address = of.address.as_ref();
            let refuse = |refusal| {
                let value = ProviderOutcome::Refused(refusal);
                Ok(failed(value, refusal, SignInMethod::Provider, address))
            };
            if let Some(user) = providers::user_of(tx.db(), key.0, key.1).await? {
                if let Some(refusal) = refuse_user(&user) {
                    return refuse(refusal);
                }
                providers::note_use(&tx, key, address.map(EmailAddress::as_str)).await?;
                let audited = begin(&tx, context, (user, false), new, None).await?;
                return Ok(audited.map(|in_| ProviderOutcome::SignedIn(Box::new(in_))));
            }
            let Some(address) = address else {
                return refuse(Refusal::Unverified);
            };
            if users::with_address(tx.db(), address).await?.is_some() {
                let facts = json!({
                    "method": "provider",
                    "reason": "address_known",
                    "address": address.as_str(),
                });
                let entry = audit_entry(Action::SignInFailed, "user", "", facts);
                return Ok(Audited::new(ProviderOutcome::AddressKnown, OPERATOR, entry));
            }
            if !registers {
                return refuse(Refusal::NoUser);
            }
            let user = users::insert(
                &tx,
                &NewUser {
                    address: address.clone(),
                    verified: true,
                    display_name: of.display_name.clone(),
                    staff: false,
                },
            )
            .await?;
            providers::link(&tx, user.id, key, Some(address.as_str())).await?;
            let audited = begin(&tx, context, (user, true), new, None).await?;
            Ok(audited.map(|in_| ProviderOutcome::SignedIn(Box::new(in_))))
        })
        .await
    }

    /// Gives a user the address to which a link was mailed, and mails `notice` to the old one.
    pub async fn change_address(
        &self,
        context: &Context,
        (who, token): (UserId, &TokenHash),
        notice: &(dyn Fn(&User, &EmailAddress) -> NewMail + Sync),
    ) -> Result<std::result::Result<User, Refusal>, StoreError> {
        let store = &self.store;
        self.change(context, |tx| async move {
            let looked = (Purpose::ChangeAddress, tx.now);
            let whose = tokens::look(store, tx.db(), token, looked).await?;
            if whose.is_ok_and(|token| token.user != Some(who)) {
                let refusal = Refusal::Token(TokenFault::Unknown);
                return Ok(Audited::unchanged(Err(refusal)));
            }
            let outcome = tokens::take(store, &tx, token, Purpose::ChangeAddress).await?;
            let (id, address) = match outcome {
                Ok(Token {
                    user: Some(id),
                    address: Some(address),
                    ..
                }) => (id, address),
                Ok(_) => return Ok(Audited::unchanged(Err(Refusal::NoUser))),
                Err(fault) => return Ok(Audited::unchanged(Err(Refusal::Token(fault)))),
            };
            users::lock(&tx, id).await?;
            let Some(user) = users::read(tx.db(), id).await?.filter(User::is_enabled) else {
                return Ok(Audited::unchanged(Err(Refusal::Disabled)));
            };
            mails::write(store, &tx, &notice(&user, &address)).await?;
            users::replace_address(&tx, id, &address).await?;
            tokens::spend_all(&tx, id, Some(&user.address)).await?;
            super::touch(&tx, id);
            let facts = json!({ "from": user.address.as_str(), "to": address.as_str() });
            let user = users::read(tx.db(), id).await?.unwrap_or(user);
            Ok(about(Ok(user), Action::UserAddressChanged, id, facts))
        })
        .await
    }
}
