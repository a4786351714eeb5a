//! Signing in: by a mailed link or code, by a password; and registration.

use std::{sync::Arc, time::Instant};

use domain::{
    Code, FaultCode, Problem,
    audit::Action,
    id::{Id as _, SessionId, UserId},
    people::{EmailAddress, Purpose, ReturnTo, SignInMethod},
    token::{self, Prefix, TokenHash},
};
use persistence::{
    Context, Given, NewMail, NewToken, Proof, Refusal, SignIn, SignedIn, StoreError, TokenFault,
    User,
};
use secrecy::{ExposeSecret as _, SecretString};
use std::time::Duration;
use zeroize::Zeroizing;

use crate::{
    Registration, Service,
    mails::{self, MailText},
    passwords::{self, Verified},
    service::{Remembered, problem_of},
};

/// How long the link of a registration is good.
pub const REGISTRATION_LASTS: Duration = Duration::from_hours(24);
/// Hexadecimal characters of a device's cookie: of its number, and of the code over it.
const DEVICE_CHARS: usize = 32;

/// A mail was asked for, or seems to have been.
#[derive(Debug)]
pub struct Requested {
    /// What the browser has to hold, so that the code is good there and the link opens without a
    /// question.
    pub visit: SecretString,
    /// How long the link and the code are good.
    pub lasts: Duration,
}

/// A person has just signed in.
#[derive(Debug)]
pub struct NewBrowserSession {
    /// What the browser has to hold from now on.
    pub cookie: SecretString,
    /// What marks the browser as one in which this user signed in before.
    pub device: String,
    /// Who signed in.
    pub sign_in: SignIn,
    /// Where the person wanted to go.
    pub return_to: ReturnTo,
}

/// What a mailed link is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// To sign in.
    SignIn,
    /// To sign in, made by the operator.
    Operator,
    /// To finish a registration.
    Register,
    /// To set a new password.
    Reset,
    /// To take over a new address.
    ChangeAddress,
}

impl LinkKind {
    const ALL: [Self; 5] = [
        Self::SignIn,
        Self::Operator,
        Self::Register,
        Self::Reset,
        Self::ChangeAddress,
    ];

    pub(crate) const fn purpose(self) -> Purpose {
        match self {
            Self::SignIn => Purpose::SignIn,
            Self::Operator => Purpose::OperatorSignIn,
            Self::Register => Purpose::Register,
            Self::Reset => Purpose::Reset,
            Self::ChangeAddress => Purpose::ChangeAddress,
        }
    }
}

/// A mailed link that was opened and not used.
#[derive(Clone, Debug)]
pub struct OpenedLink {
    /// What it is for.
    pub kind: LinkKind,
    /// The address to which it was mailed; for a link of the operator's, the user's.
    pub address: EmailAddress,
    /// Whether this browser asked for it, or none had to.
    pub same_browser: bool,
}

/// A browser in which a user signed in before. It opens nothing: it only keeps what others do from
/// slowing that user down.
#[derive(Clone, Copy, Debug)]
pub struct Device<'a>(pub Option<&'a str>);

/// What a registration remembers until its link is used.
#[derive(serde::Serialize, serde::Deserialize)]
struct Registering {
    password: Option<String>,
    name: Option<String>,
    #[serde(flatten)]
    remembered: Remembered,
}

pub(crate) fn mail(
    kind: &'static str,
    to: &EmailAddress,
    text: MailText,
    lasts: Duration,
) -> NewMail {
    NewMail {
        to: to.to_string(),
        subject: text.subject,
        text: text.text,
        html: text.html,
        kind,
        lasts,
    }
}

/// What is made for the user who has an address, or for nobody: the token, the mail, and whether it
/// is sent.
pub(crate) type ForUser<'a> = (
    &'a (dyn Fn(Option<UserId>) -> NewToken + Sync),
    &'a (dyn Fn(Option<&User>) -> NewMail + Sync),
    &'a (dyn Fn(Option<&User>) -> bool + Sync),
);

fn eight_digits() -> String {
    // The bias of the remainder is under one in a thousand million.
    let random = u64::from_be_bytes(domain::random::bytes());
    format!("{:08}", random % 100_000_000)
}

impl Service {
    /// Takes an address in its one form. `pointer` names the field.
    ///
    /// # Errors
    /// `validation_failed` that names the field.
    pub fn address(text: &str, pointer: &str) -> Result<EmailAddress, Problem> {
        EmailAddress::parse(text).ok_or_else(|| {
            let detail = "This is no e-mail address that mail can be sent to.";
            Problem::field(pointer, FaultCode::Format, detail)
        })
    }

    /// Mails a link and a code to sign in with, if somebody may sign in by that address. Whether a
    /// mail was sent shows neither in the answer nor in how long it takes.
    ///
    /// # Errors
    /// 429 `rate_limited` if this network asked for too many mails; `not_found` if no mails are sent.
    pub async fn request_link(
        &self,
        context: &Context,
        address: &EmailAddress,
        visit: Option<&str>,
        return_to: Option<&ReturnTo>,
    ) -> Result<Requested, StoreError> {
        self.need_mail()?;
        let visit = Self::visit(visit);
        let browser = self.browser_hash(visit.expose_secret());
        let (text, code) = (token::generate(Prefix::Link), eight_digits());
        let remembered = Remembered {
            return_to: return_to.map(|path| path.as_str().to_owned()),
        };
        let lasts = self.settings.link_lasts;
        let words = mails::sign_in(&mails::SignIn {
            site: self.site(),
            link: &self.link("/sign-in/confirm", &text),
            code: &code,
            valid_for: lasts,
            asked_from: asked_from(context),
        });
        let token = |user: Option<UserId>| NewToken {
            hash: TokenHash::of_secret(&text),
            purpose: Purpose::SignIn,
            user,
            address: Some(address.clone()),
            browser: Some(browser),
            code: Some(self.code_hash(&browser, &code)),
            payload: Some(remembered.to_payload()),
            lasts,
            supersedes: true,
        };
        let opens = self.settings.registration == Registration::Open;
        let sends = |user: Option<&User>| user.map_or(opens, User::is_enabled);
        let mail = |_: Option<&User>| mail("sign_in", address, words.clone(), lasts);
        let what = (Action::SignInRequested, "sign_in");
        self.request(context, address, what, (&token, &mail, &sends))
            .await?;
        Ok(Requested { visit, lasts })
    }

    /// The text that this browser holds, or a new one.
    pub(crate) fn visit(held: Option<&str>) -> SecretString {
        match held {
            Some(held) if token::recognise(held) == Some(Prefix::Link) => {
                SecretString::from(held.to_owned())
            }
            _ => token::generate(Prefix::Link),
        }
    }

    /// What all requests for a mail have in common: they are counted, write as much whether or not
    /// there is a user, and take at least as long as the floor.
    pub(crate) async fn request(
        &self,
        context: &Context,
        address: &EmailAddress,
        (action, kind): (Action, &str),
        (token, mail, sends): ForUser<'_>,
    ) -> Result<(), StoreError> {
        let (began, identity) = (Instant::now(), self.store.identity());
        self.admit(&[self.mails_from(context)]).await?;
        let to = self.mails_to(address, kind);
        let silent = !self.admits(&[to]).await?;
        let user = identity.user_with_address(address).await?;
        let delivers = !silent && sends(user.as_ref());
        // A token that nobody gets opens nothing.
        let mut token = token(user.as_ref().filter(|_| delivers).map(|user| user.id));
        if !delivers {
            token.hash = TokenHash::of_secret(&token::generate(Prefix::Link));
            token.code = None;
        }
        // Who asks too often takes no link away that was mailed before.
        token.supersedes = !silent;
        let mail = mail(user.as_ref());
        identity
            .request_mail(context, &token, &mail, (action, delivers))
            .await?;
        self.rest_of_floor(began).await;
        Ok(())
    }

    /// Waits until the floor has passed since `began`.
    async fn rest_of_floor(&self, began: Instant) {
        tokio::time::sleep(self.settings.floor.saturating_sub(began.elapsed())).await;
    }

    /// Looks at a mailed link without using it.
    ///
    /// # Errors
    /// `link_invalid`, `link_used`, `link_expired`.
    pub async fn open_link(
        &self,
        text: &str,
        visit: Option<&str>,
    ) -> Result<OpenedLink, StoreError> {
        let identity = self.store.identity();
        let hash = link_hash(text)?;
        let mut fault = TokenFault::Unknown;
        for kind in LinkKind::ALL {
            let token = match identity.token(&hash, kind.purpose()).await? {
                Ok(token) => token,
                Err(TokenFault::Unknown) => continue,
                Err(other) => {
                    fault = other;
                    continue;
                }
            };
            let address = match (&token.address, token.user) {
                (Some(address), _) => Some(address.clone()),
                (None, Some(user)) => identity.user(user).await?.map(|user| user.address),
                (None, None) => None,
            };
            let browser = visit.map(|visit| self.browser_hash(visit));
            return Ok(OpenedLink {
                kind,
                address: address.ok_or(Code::LinkExpired)?,
                same_browser: token.browser.is_none() || token.is_of_browser(browser.as_ref()),
            });
        }
        Err(problem_of(Refusal::Token(fault)).into())
    }

    /// Signs in by a mailed link, which is used up. In a browser that did not ask for it, the
    /// person has to have `confirmed`.
    ///
    /// # Errors
    /// `link_invalid`, `link_used`, `link_expired`, `other_browser`, `user_disabled`.
    pub async fn redeem_link(
        &self,
        context: &Context,
        text: &str,
        (visit, confirmed): (Option<&str>, bool),
        old: Option<&SignedIn>,
    ) -> Result<NewBrowserSession, StoreError> {
        let hash = link_hash(text)?;
        let browser = visit.map(|visit| self.browser_hash(visit));
        let kind = self.open_link(text, visit).await?.kind;
        let (method, registers) = match kind {
            LinkKind::SignIn => (
                SignInMethod::Link,
                self.settings.registration == Registration::Open,
            ),
            LinkKind::Operator => (SignInMethod::Operator, false),
            _ => return Err(Code::LinkInvalid.into()),
        };
        let proof = Proof::Link {
            token: &hash,
            browser: browser.as_ref(),
            confirmed,
        };
        self.redeem(context, (proof, kind.purpose()), (method, registers), old)
            .await
    }

    /// Signs in by the code of a mail, in the browser that asked for it.
    ///
    /// # Errors
    /// 401 `sign_in_failed` for a wrong code; `link_used`, `link_expired`, `user_disabled`; 429
    /// `rate_limited`.
    pub async fn redeem_code(
        &self,
        context: &Context,
        visit: &str,
        code: &str,
        old: Option<&SignedIn>,
    ) -> Result<NewBrowserSession, StoreError> {
        let from = [self.failures_from(context)];
        self.admit(&from).await?;
        let browser = self.browser_hash(visit);
        let digits: String = code.chars().filter(char::is_ascii_digit).collect();
        let code = self.code_hash(&browser, &digits);
        let proof = Proof::Code {
            browser: &browser,
            code: &code,
        };
        let registers = self.settings.registration == Registration::Open;
        let by = (SignInMethod::Link, registers);
        let done = self
            .redeem(context, (proof, Purpose::SignIn), by, old)
            .await;
        match done {
            Err(StoreError::Refused(problem)) if problem.code == Code::LinkInvalid => {
                Err(Code::SignInFailed.into())
            }
            Ok(session) => {
                self.store.identity().give_back(&from).await?;
                Ok(session)
            }
            other => other,
        }
    }

    async fn redeem(
        &self,
        context: &Context,
        by: (Proof<'_>, Purpose),
        (method, registers): (SignInMethod, bool),
        old: Option<&SignedIn>,
    ) -> Result<NewBrowserSession, StoreError> {
        let begun = self.begin_session(method, None);
        let done = self
            .store
            .identity()
            .sign_in_with_token(context, by, registers, &begun.new)
            .await?;
        let sign_in = done.map_err(problem_of)?;
        self.welcome(context, begun.cookie, sign_in, old).await
    }

    /// Signs in by a password.
    ///
    /// # Errors
    /// 401 `sign_in_failed`, the same for an unknown address and a wrong password;
    /// `email_unverified` and `user_disabled` after the right one; 429 `rate_limited`; 503
    /// `overloaded`; `not_found` if people have no passwords here.
    pub async fn sign_in_with_password(
        &self,
        context: &Context,
        (address, password): (&EmailAddress, &SecretString),
        device: Device<'_>,
        old: Option<&SignedIn>,
    ) -> Result<NewBrowserSession, StoreError> {
        self.need_passwords()?;
        let (began, identity) = (Instant::now(), self.store.identity());
        let user = identity.user_with_address(address).await?;
        let counted = self.counted(context, address, user.as_ref(), device);
        self.admit(&counted).await?;
        // As many queries for nobody as for a user.
        let id = user
            .as_ref()
            .map_or(UserId::from_uuid(uuid::Uuid::nil()), |user| user.id);
        let stored = identity.password_hash(id).await?;
        let verified = self.hasher.verify(password, stored.as_deref()).await?;
        let (Some(user), false) = (&user, verified == Verified::Wrong) else {
            let why = (SignInMethod::Password, "wrong_password");
            let known = user.as_ref().map(|user| user.id);
            identity
                .note_failure(context, why, Some(address), known)
                .await?;
            // A user takes some queries more than nobody.
            self.rest_of_floor(began).await;
            return Err(Code::SignInFailed.into());
        };
        let mut judged = stored;
        if let (Verified::Outdated(new), Some(old)) = (verified, &judged) {
            identity.rehash_password(user.id, old, &new).await?;
            judged = Some(new);
        }
        let begins = self.begin_session(SignInMethod::Password, None);
        let who = (user.id, judged.as_deref());
        let done = identity.sign_in_user(context, who, &begins.new).await?;
        let sign_in = done.map_err(problem_of)?;
        identity.give_back(&counted).await?;
        identity.forgive(&self.failures_for(address).0).await?;
        self.welcome(context, begins.cookie, sign_in, old).await
    }

    pub(crate) fn need_passwords(&self) -> Result<(), Problem> {
        if self.settings.passwords {
            Ok(())
        } else {
            let detail = "People sign in without passwords here.";
            Err(Problem::new(Code::NotFound, detail))
        }
    }

    /// What an attempt counts towards: a browser in which the user signed in before counts for
    /// itself, so that nobody else slows the user down.
    fn counted(
        &self,
        context: &Context,
        address: &EmailAddress,
        user: Option<&User>,
        device: Device<'_>,
    ) -> Vec<crate::throttle::Counted> {
        match (device.0, user) {
            (Some(device), Some(user)) if self.is_device_of(device, user.id) => {
                vec![self.failures_of_device(device)]
            }
            _ => vec![self.failures_for(address), self.failures_from(context)],
        }
    }

    fn is_device_of(&self, device: &str, user: UserId) -> bool {
        use subtle::ConstantTimeEq as _;
        let Some((number, code)) = device.split_at_checked(DEVICE_CHARS) else {
            return false;
        };
        let right = self.device_code(number, user);
        right.as_bytes().ct_eq(code.as_bytes()).into()
    }

    fn device_code(&self, number: &str, user: UserId) -> String {
        let user = user.to_string();
        let parts = [number.as_bytes(), user.as_bytes()];
        hex::encode(&self.keyed("device", &parts)[..DEVICE_CHARS / 2])
    }

    /// What follows every sign-in: the browser's earlier session ends, and whoever has registered
    /// gets a publisher, if the operator wants that.
    pub(crate) async fn welcome(
        &self,
        context: &Context,
        cookie: SecretString,
        sign_in: SignIn,
        old: Option<&SignedIn>,
    ) -> Result<NewBrowserSession, StoreError> {
        let user = &sign_in.user;
        if let Some(old) = old {
            self.end_session(context, old.user.id, old.session.id)
                .await?;
        }
        if self.settings.provision_publisher && self.settings.registration == Registration::Open {
            self.provision(context, user).await?;
        }
        let number = hex::encode(domain::random::bytes::<16>());
        let code = self.device_code(&number, user.id);
        Ok(NewBrowserSession {
            cookie,
            device: number + &code,
            return_to: Remembered::return_to(sign_in.payload.as_deref().map(Vec::as_slice)),
            sign_in,
        })
    }

    /// Ends a session; one that has ended already is no error.
    ///
    /// # Errors
    /// The store can't be written.
    pub async fn end_session(
        &self,
        context: &Context,
        user: UserId,
        session: SessionId,
    ) -> Result<(), StoreError> {
        let done = self
            .store
            .identity()
            .end_session(context, user, session)
            .await;
        match done {
            Err(StoreError::Refused(problem)) if problem.code == Code::NotFound => Ok(()),
            other => other,
        }
    }

    /// Begins a registration: mails a link to finish it. An address that is a user's already gets
    /// a mail that says so, and the answer is the same.
    ///
    /// # Errors
    /// `registration_closed`; `validation_failed` for a bad password; 429 `rate_limited`; 503
    /// `overloaded`; `not_found` if no mails are sent.
    pub async fn register(
        &self,
        context: &Context,
        address: &EmailAddress,
        (password, visit): (Option<&SecretString>, Option<&str>),
        (name, return_to): (Option<&str>, Option<&ReturnTo>),
    ) -> Result<Requested, StoreError> {
        self.need_mail()?;
        if self.settings.registration == Registration::Closed {
            return Err(Code::RegistrationClosed.into());
        }
        let visit = Self::visit(visit);
        let browser = self.browser_hash(visit.expose_secret());
        let password = match password {
            Some(password) => {
                self.need_passwords()?;
                passwords::judge(password, address, "/password")?;
                Some(self.hasher.hash(password).await?)
            }
            None => None,
        };
        let registering = Registering {
            password,
            name: name.map(str::to_owned),
            remembered: Remembered {
                return_to: return_to.map(|path| path.as_str().to_owned()),
            },
        };
        let payload = serde_json::to_vec(&registering).unwrap_or_default();
        let payload = Zeroizing::new(payload);
        let text = token::generate(Prefix::Link);
        let token = |user: Option<UserId>| NewToken {
            // What is mailed to a user opens nothing.
            hash: match user {
                Some(_) => TokenHash::of_secret(&token::generate(Prefix::Link)),
                None => TokenHash::of_secret(&text),
            },
            purpose: Purpose::Register,
            user,
            address: Some(address.clone()),
            browser: Some(browser),
            code: None,
            payload: Some(payload.clone()),
            lasts: REGISTRATION_LASTS,
            supersedes: true,
        };
        let words = |user: Option<&User>| match user {
            Some(_) => mails::already_registered(&mails::AlreadyRegistered {
                site: self.site(),
                link: &self.page("/sign-in"),
                asked_from: asked_from(context),
            }),
            None => mails::verify_address(&mails::VerifyAddress {
                site: self.site(),
                link: &self.link("/verify", &text),
                valid_for: REGISTRATION_LASTS,
                asked_from: asked_from(context),
            }),
        };
        let mail = |user: Option<&User>| mail("register", address, words(user), REGISTRATION_LASTS);
        let sends = |user: Option<&User>| user.is_none_or(User::is_enabled);
        let what = (Action::SignInRequested, "register");
        self.request(context, address, what, (&token, &mail, &sends))
            .await?;
        let lasts = REGISTRATION_LASTS;
        Ok(Requested { visit, lasts })
    }

    /// Finishes a registration by its link: makes the user, and signs the person in. The password
    /// and the name that were given count in the browser in which they were given: whoever opens
    /// the link elsewhere may not be the one who gave them, and sets a password later.
    ///
    /// # Errors
    /// `link_invalid`, `link_used`, `link_expired`.
    pub async fn finish_registration(
        &self,
        context: &Context,
        (text, visit): (&str, Option<&str>),
        old: Option<&SignedIn>,
    ) -> Result<NewBrowserSession, StoreError> {
        let hash = link_hash(text)?;
        let from = [self.failures_from(context)];
        self.admit(&from).await?;
        let browser = visit.map(|visit| self.browser_hash(visit));
        let begun = self.begin_session(SignInMethod::Link, None);
        let given = |payload: &[u8]| {
            let registering: Registering = serde_json::from_slice(payload).ok()?;
            Some(Given {
                password: registering.password,
                name: registering.name,
            })
        };
        let done = self
            .store
            .identity()
            .finish_registration(context, (&hash, browser.as_ref()), &given, &begun.new)
            .await?;
        let sign_in = done.map_err(problem_of)?;
        self.store.identity().give_back(&from).await?;
        self.welcome(context, begun.cookie, sign_in, old).await
    }

    /// Who is signed in, shared by what a request's parts need of it.
    ///
    /// # Errors
    /// 401 `unauthenticated`; the store can't be read.
    pub async fn need_signed_in(&self, cookie: Option<&str>) -> Result<Arc<SignedIn>, StoreError> {
        let found = match cookie {
            Some(cookie) => self.signed_in(cookie).await?,
            None => None,
        };
        found.ok_or_else(|| Code::Unauthenticated.into())
    }
}

/// Who asked for a mail, in words for it.
pub(crate) fn asked_from(context: &Context) -> mails::AskedFrom<'_> {
    mails::AskedFrom {
        browser: context
            .user_agent
            .as_deref()
            .unwrap_or("an unnamed browser"),
        address: context.address.as_deref().unwrap_or("unknown"),
    }
}

/// The hash of a link's text. What has not the form of one is none of ours.
pub(crate) fn link_hash(text: &str) -> Result<TokenHash, Problem> {
    if token::recognise(text) == Some(Prefix::Link) {
        Ok(TokenHash::of(text))
    } else {
        Err(Code::LinkInvalid.into())
    }
}
