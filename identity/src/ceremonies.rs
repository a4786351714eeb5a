//! Passkeys: adding one, signing in by one.
//!
//! A ceremony begins with options for the browser and a text that comes back with its answer. The
//! challenge follows from the text, so that nothing but its hash is stored; and the text is good
//! once, so that an answer is too.

use std::time::Duration;

use domain::{
    Code, FaultCode, Problem,
    id::{PasskeyId, UserId},
    people::{Purpose, SignInMethod},
    token::{self, Prefix, TokenHash},
};
use persistence::{Context, NewToken, Passkey, SignedIn, StoreError, TokenFault};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};

use crate::{
    NewBrowserSession, Service,
    passkeys::{
        AssertionResponse, Challenge, Choice, CreationOptions, Owner, PasskeyError,
        RegistrationResponse, RelyingParty, RequestOptions, StoredPasskey, verify_assertion,
        verify_registration,
    },
    service::problem_of,
    sign_in::link_hash,
};

/// How long a browser may take.
const CEREMONY_LASTS: Duration = Duration::from_mins(5);
/// Longest name of a passkey, characters.
const NAME_CHARS: usize = 60;
/// A ceremony that was begun.
#[derive(Debug)]
pub struct Ceremony<O> {
    /// What has to come back with the browser's answer.
    pub token: SecretString,
    /// What the browser is asked.
    pub options: O,
}

/// What authenticators call a user: the same for all passkeys of the user, and telling nothing.
fn handle_of(user: UserId) -> [u8; 32] {
    Sha256::new()
        .chain_update(b"stationmaster.user-handle.v1")
        .chain_update(user.to_string().as_bytes())
        .finalize()
        .into()
}

impl Service {
    /// Whether people can have passkeys here: browsers know none for bare IP addresses.
    #[must_use]
    pub fn has_passkeys(&self) -> bool {
        self.relying_party.is_some()
    }

    fn party(&self) -> Result<&RelyingParty, Problem> {
        self.relying_party.as_ref().ok_or_else(|| {
            let detail = "Passkeys need a host name in the public URL.";
            Problem::new(Code::NotFound, detail)
        })
    }

    fn challenge(&self, text: &SecretString) -> Challenge {
        self.keyed("challenge", &[text.expose_secret().as_bytes()])
    }

    async fn begin(
        &self,
        purpose: Purpose,
        user: Option<UserId>,
    ) -> Result<(SecretString, Challenge), StoreError> {
        let text = token::generate(Prefix::Link);
        let new = NewToken {
            hash: TokenHash::of_secret(&text),
            purpose,
            user,
            address: None,
            browser: None,
            code: None,
            payload: None,
            lasts: CEREMONY_LASTS,
            supersedes: false,
        };
        self.store.identity().issue_token(&new).await?;
        let challenge = self.challenge(&text);
        Ok((text, challenge))
    }

    /// Takes the text of a ceremony, which is then used up, and returns its challenge.
    async fn take_ceremony(
        &self,
        text: &SecretString,
        (purpose, user): (Purpose, Option<UserId>),
    ) -> Result<Challenge, StoreError> {
        let hash = link_hash(text.expose_secret())?;
        let taken = self.store.identity().take_token(&hash, purpose).await?;
        let fault = match taken {
            Ok(taken) if taken.user == user => return Ok(self.challenge(text)),
            Ok(_) => TokenFault::Unknown,
            Err(fault) => fault,
        };
        Err(problem_of(persistence::Refusal::Token(fault)).into())
    }

    /// Begins to add a passkey to a person who signed in recently.
    ///
    /// # Errors
    /// `not_found` if there are no passkeys here.
    pub async fn begin_passkey(
        &self,
        who: &SignedIn,
    ) -> Result<Ceremony<CreationOptions>, StoreError> {
        let party = self.party()?;
        let user = &who.user;
        let known = self.store.identity().passkeys(user.id).await?;
        let known: Vec<Choice<'_>> = known.iter().map(choice).collect();
        let by = (Purpose::PasskeyRegistration, Some(user.id));
        let (token, challenge) = self.begin(by.0, by.1).await?;
        let owner = Owner {
            handle: &handle_of(user.id),
            email: user.address.as_str(),
            name: user
                .display_name
                .as_deref()
                .unwrap_or(user.address.as_str()),
        };
        let options = CreationOptions::new(party, &challenge, &owner, &known);
        Ok(Ceremony { token, options })
    }

    /// Adds a passkey by the browser's answer, and tells the person by mail.
    ///
    /// # Errors
    /// `validation_failed` if the answer is not accepted; `link_expired`, `link_used`;
    /// `passkey_taken`, `quota_exceeded`.
    pub async fn add_passkey(
        &self,
        (context, who): (&Context, &SignedIn),
        token: &SecretString,
        response: &RegistrationResponse,
        name: &str,
    ) -> Result<Passkey, StoreError> {
        let party = self.party()?;
        let by = (Purpose::PasskeyRegistration, Some(who.user.id));
        let challenge = self.take_ceremony(token, by).await?;
        let made = verify_registration(party, &challenge, response).map_err(refused)?;
        let name = passkey_name(name);
        let new = persistence::NewPasskey {
            credential_id: made.credential_id,
            public_key: made.public_key,
            sign_count: made.sign_count,
            backed_up: made.backed_up,
            name,
        };
        let notice = self.passkey_notice(context, &who.user.address, (&new.name, true));
        let identity = self.store.identity();
        identity
            .add_passkey(context, who.user.id, &new, &notice)
            .await
    }

    /// Begins a sign-in by passkey.
    ///
    /// # Errors
    /// `not_found` if there are no passkeys here; 429 `rate_limited`.
    pub async fn begin_passkey_sign_in(
        &self,
        context: &Context,
    ) -> Result<Ceremony<RequestOptions>, StoreError> {
        let party = self.party()?;
        self.admit(&[self.begun_from(context)]).await?;
        let (token, challenge) = self.begin(Purpose::PasskeySignIn, None).await?;
        let options = RequestOptions::new(party, &challenge, &[]);
        Ok(Ceremony { token, options })
    }

    /// Signs in by the browser's answer.
    ///
    /// # Errors
    /// 401 `sign_in_failed` if the answer is not accepted, or the passkey is nobody's;
    /// `link_expired`, `link_used`; `user_disabled`, `email_unverified`; 429 `rate_limited`.
    pub async fn sign_in_with_passkey(
        &self,
        context: &Context,
        token: &SecretString,
        response: &AssertionResponse,
        old: Option<&SignedIn>,
    ) -> Result<NewBrowserSession, StoreError> {
        let party = self.party()?;
        let from = [self.failures_from(context)];
        self.admit(&from).await?;
        let identity = self.store.identity();
        let challenge = self
            .take_ceremony(token, (Purpose::PasskeySignIn, None))
            .await?;
        let fails = async |reason: &str, user: Option<UserId>| -> Result<_, StoreError> {
            let why = (SignInMethod::Passkey, reason);
            identity.note_failure(context, why, None, user).await?;
            Err(StoreError::from(Code::SignInFailed))
        };
        let known = match response.credential_id() {
            Ok(id) => identity.passkey_by_credential(&id).await?,
            Err(error) => return fails(error.code(), None).await,
        };
        let Some(passkey) = known else {
            return fails("unknown_passkey", None).await;
        };
        let stored = StoredPasskey {
            credential_id: &passkey.credential_id,
            public_key: &passkey.public_key,
            sign_count: passkey.sign_count,
            user_handle: &handle_of(passkey.user),
        };
        let verified = match verify_assertion(party, &challenge, &stored, response) {
            Ok(verified) => verified,
            Err(error) => return fails(error.code(), Some(passkey.user)).await,
        };
        if !identity.use_passkey(&passkey, verified.sign_count).await? {
            return fails(PasskeyError::Counter.code(), Some(passkey.user)).await;
        }
        let begun = self.begin_session(SignInMethod::Passkey, None);
        let done = identity
            .sign_in_user(context, (passkey.user, None), &begun.new)
            .await?;
        let sign_in = done.map_err(problem_of)?;
        identity.give_back(&from).await?;
        self.welcome(context, begun.cookie, sign_in, old).await
    }

    /// A person's passkeys, oldest first.
    ///
    /// # Errors
    /// The store can't be read.
    pub async fn passkeys(&self, user: UserId) -> Result<Vec<Passkey>, StoreError> {
        self.store.identity().passkeys(user).await
    }

    /// Changes a passkey's name.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn rename_passkey(
        &self,
        (context, who): (&Context, &SignedIn),
        id: PasskeyId,
        name: &str,
    ) -> Result<(), StoreError> {
        let identity = self.store.identity();
        identity
            .rename_passkey(context, who.user.id, id, &passkey_name(name))
            .await
    }

    /// Removes a passkey, and tells the person by mail.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn remove_passkey(
        &self,
        (context, who): (&Context, &SignedIn),
        id: PasskeyId,
    ) -> Result<(), StoreError> {
        let identity = self.store.identity();
        let known = identity.passkeys(who.user.id).await?;
        let passkey = known.into_iter().find(|passkey| passkey.id == id);
        let name = passkey.ok_or_else(Problem::not_found)?.name;
        let notice = self.passkey_notice(context, &who.user.address, (&name, false));
        identity
            .remove_passkey(context, who.user.id, id, &notice)
            .await
    }
}

fn choice(passkey: &Passkey) -> Choice<'_> {
    Choice {
        credential_id: &passkey.credential_id,
        transports: &[],
    }
}

/// A name for people, on one line; "Passkey" if nothing is left.
fn passkey_name(text: &str) -> String {
    let plain = outbound::mail::one_line(text, NAME_CHARS);
    if plain.trim().is_empty() {
        "Passkey".to_owned()
    } else {
        plain
    }
}

fn refused(error: PasskeyError) -> Problem {
    tracing::info!(reason = error.code(), "a new passkey was not accepted");
    let detail = format!("The passkey was not accepted: {error}.");
    Problem::field("/response", FaultCode::Invalid, detail)
}
