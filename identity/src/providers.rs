//! Sign-in elsewhere: at the operator's issuers.
//!
//! What is begun is bound to the browser by a cookie's hash, is good once, and remembers at which
//! issuer it began. An identity is an issuer and what it calls its subject, never an address. An
//! address that the issuer has verified makes a new user where registration is open; that of a user
//! who is known connects nothing by itself: the user signs in as before, and connects it.

use std::{sync::Arc, time::Duration};

use domain::{
    Code, Problem,
    id::UserId,
    limits,
    people::{EmailAddress, Purpose, ReturnTo, SignInMethod},
    token::TokenHash,
};
use persistence::{
    Context, NewToken, ProviderIdentity, ProviderOutcome, ProviderSubject, Refusal, SignedIn,
    StoreError, TokenFault,
};
use secrecy::{ExposeSecret as _, SecretString};
use zeroize::Zeroizing;

use crate::{
    NewBrowserSession, Registration, Service,
    issuers::{self, Callback, Issuer, IssuerError, Pending},
    service::{Remembered, problem_of},
};

/// How long a person may take at the issuer.
const PROVIDER_LASTS: Duration = Duration::from_mins(10);

/// A sign-in elsewhere that was begun.
#[derive(Debug)]
pub struct BeganElsewhere {
    /// Where the browser is sent.
    pub url: String,
    /// What the browser has to hold until it comes back.
    pub visit: SecretString,
}

/// What a sign-in elsewhere led to.
#[derive(Debug)]
pub enum CameBack {
    /// The person is signed in.
    SignedIn(Box<NewBrowserSession>),
    /// The sign-in is connected with the person who was signed in already.
    Linked(ReturnTo),
}

/// What is remembered until the browser comes back.
#[derive(serde::Serialize, serde::Deserialize)]
struct Begun {
    provider: String,
    nonce: String,
    verifier: String,
    #[serde(flatten)]
    remembered: Remembered,
}

impl Service {
    /// The service with the operator's issuers.
    #[must_use]
    pub fn with_issuers(mut self, issuers: Vec<Issuer>) -> Self {
        self.issuers = Arc::new(issuers);
        self
    }

    /// The names of the issuers, in the order of the settings.
    #[must_use]
    pub fn providers(&self) -> Vec<String> {
        self.issuers
            .iter()
            .map(|issuer| issuer.name().to_owned())
            .collect()
    }

    fn issuer(&self, name: &str) -> Result<&Issuer, Problem> {
        let found = self.issuers.iter().find(|issuer| issuer.name() == name);
        found.ok_or_else(Problem::not_found)
    }

    fn redirect_uri(&self, name: &str) -> String {
        self.page(&format!("/sign-in/with/{name}/callback"))
    }

    /// Begins a sign-in elsewhere; or, for a person who is signed in, the connection of one.
    ///
    /// # Errors
    /// `not_found` if there is no such issuer; 429 `rate_limited`; 502 `provider_unavailable`.
    pub async fn begin_elsewhere(
        &self,
        (context, name): (&Context, &str),
        visit: Option<&str>,
        return_to: Option<&ReturnTo>,
        link_for: Option<&SignedIn>,
    ) -> Result<BeganElsewhere, StoreError> {
        let issuer = self.issuer(name)?;
        self.admit(&[self.begun_from(context)]).await?;
        let started = issuer
            .begin(&self.redirect_uri(name))
            .await
            .map_err(refused)?;
        let visit = Self::visit(visit);
        let begun = Begun {
            provider: name.to_owned(),
            nonce: started.nonce.expose_secret().to_owned(),
            verifier: started.pkce_verifier.expose_secret().to_owned(),
            remembered: Remembered {
                return_to: return_to.map(|path| path.as_str().to_owned()),
            },
        };
        let payload = serde_json::to_vec(&begun).unwrap_or_default();
        let token = NewToken {
            hash: TokenHash::of_secret(&started.state),
            purpose: Purpose::Provider,
            user: link_for.map(|who| who.user.id),
            address: None,
            browser: Some(self.browser_hash(visit.expose_secret())),
            code: None,
            payload: Some(Zeroizing::new(payload)),
            lasts: PROVIDER_LASTS,
            supersedes: false,
        };
        self.store.identity().issue_token(&token).await?;
        Ok(BeganElsewhere {
            url: started.url,
            visit,
        })
    }

    /// Ends a sign-in elsewhere, with what the browser brought back.
    ///
    /// # Errors
    /// 400 `link_invalid` for a state that this browser did not begin, or that began at another
    /// issuer; `link_used`, `link_expired`; 400 `provider_refused`; 502 `provider_unavailable`;
    /// `email_unverified`, `registration_closed`, `provider_not_linked`, `identity_taken`,
    /// `user_disabled`.
    pub async fn finish_elsewhere(
        &self,
        context: &Context,
        name: &str,
        (state, callback): (&str, Callback<'_>),
        visit: Option<&str>,
        old: Option<&SignedIn>,
    ) -> Result<CameBack, StoreError> {
        let issuer = self.issuer(name)?;
        let identity = self.store.identity();
        let hash = TokenHash::of(state);
        let browser = visit.map(|visit| self.browser_hash(visit));
        let looked = identity.token(&hash, Purpose::Provider).await?;
        let looked = looked.map_err(|fault| problem_of(Refusal::Token(fault)))?;
        if !looked.is_of_browser(browser.as_ref()) {
            return Err(Code::LinkInvalid.into());
        }
        let token = identity.take_token(&hash, Purpose::Provider).await?;
        let token = token.map_err(|fault: TokenFault| problem_of(Refusal::Token(fault)))?;
        let payload = token.payload.as_deref().map(Vec::as_slice);
        let begun: Begun = payload
            .and_then(|payload| serde_json::from_slice(payload).ok())
            .ok_or(Code::LinkInvalid)?;
        if begun.provider != name {
            return Err(Code::LinkInvalid.into());
        }
        let redirect_uri = self.redirect_uri(name);
        let pending = Pending {
            provider: &begun.provider,
            redirect_uri: &redirect_uri,
            nonce: &SecretString::from(begun.nonce.clone()),
            pkce_verifier: &SecretString::from(begun.verifier.clone()),
        };
        let found = match issuer.finish(callback, pending, self.store.now()).await {
            Ok(found) => found,
            Err(error) => {
                let why = (SignInMethod::Provider, error.reason());
                identity.note_failure(context, why, None, None).await?;
                return Err(refused(error).into());
            }
        };
        let return_to = Remembered::return_to(payload);
        match token.user {
            Some(user) => {
                self.connect(context, (user, &found), old).await?;
                Ok(CameBack::Linked(return_to))
            }
            None => self.enter(context, &found, (return_to, old)).await,
        }
    }

    /// Connects a sign-in elsewhere with the person who began to, and is still signed in here.
    async fn connect(
        &self,
        context: &Context,
        (user, found): (UserId, &issuers::SignedIn),
        old: Option<&SignedIn>,
    ) -> Result<(), StoreError> {
        if old.map(|who| who.user.id) != Some(user) {
            return Err(Code::LinkInvalid.into());
        }
        let key = (found.issuer.as_str(), found.subject.as_str());
        let address = found.email.as_ref().map(|email| email.address.as_str());
        let identity = self.store.identity();
        identity.link_provider(context, user, key, address).await
    }

    async fn enter(
        &self,
        context: &Context,
        found: &issuers::SignedIn,
        (return_to, old): (ReturnTo, Option<&SignedIn>),
    ) -> Result<CameBack, StoreError> {
        let verified = found.email.as_ref().filter(|email| email.verified);
        let of = ProviderSubject {
            provider: found.issuer.clone(),
            subject: found.subject.clone(),
            address: verified.and_then(|email| EmailAddress::parse(&email.address)),
            display_name: found
                .name
                .as_deref()
                .map(|name| outbound::mail::one_line(name, limits::NAME_CHARS)),
        };
        let begun = self.begin_session(SignInMethod::Provider, Some(&found.provider));
        let opens = self.settings.registration == Registration::Open;
        let identity = self.store.identity();
        let done = identity
            .sign_in_with_provider(context, &of, opens, &begun.new)
            .await?;
        let sign_in = match done {
            ProviderOutcome::SignedIn(sign_in) => *sign_in,
            ProviderOutcome::AddressKnown => return Err(Code::ProviderNotLinked.into()),
            ProviderOutcome::Refused(Refusal::NoUser) => {
                return Err(Code::RegistrationClosed.into());
            }
            ProviderOutcome::Refused(refusal) => return Err(problem_of(refusal).into()),
        };
        let session = self.welcome(context, begun.cookie, sign_in, old).await?;
        Ok(CameBack::SignedIn(Box::new(NewBrowserSession {
            return_to,
            ..session
        })))
    }

    /// The sign-ins elsewhere that are connected with a person.
    ///
    /// # Errors
    /// The store can't be read.
    pub async fn identities(&self, user: UserId) -> Result<Vec<ProviderIdentity>, StoreError> {
        self.store.identity().identities(user).await
    }

    /// Disconnects a sign-in elsewhere from a person. `provider` is the issuer.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn unlink(
        &self,
        (context, who): (&Context, &SignedIn),
        provider: &str,
    ) -> Result<(), StoreError> {
        let identity = self.store.identity();
        identity
            .unlink_provider(context, who.user.id, provider)
            .await
    }
}

fn refused(error: IssuerError) -> Problem {
    match error {
        IssuerError::Denied => Problem::new(Code::ProviderRefused, "The sign-in was not allowed."),
        IssuerError::Passing(_) => Code::ProviderUnavailable.into(),
        IssuerError::Refused(_) => Code::ProviderRefused.into(),
    }
}
