//! Links for those who can't sign in by themselves: for a new password, and from the operator.

use std::time::Duration;

use domain::{
    Code,
    audit::Action,
    id::UserId,
    people::{EmailAddress, Purpose},
    token::{self, Prefix, TokenHash},
};
use persistence::{Context, NewMail, NewToken, Refusal, StoreError, User};
use secrecy::SecretString;

use crate::{
    Service, mails, passwords,
    service::problem_of,
    sign_in::{LinkKind, asked_from, link_hash, mail},
};

/// How long a link for a new password is good.
pub const RESET_LASTS: Duration = Duration::from_hours(1);
/// How long a link that the operator made is good.
const OPERATOR_LINK_LASTS: Duration = Duration::from_hours(24);

impl Service {
    /// Mails a link for a new password, if a user has the address.
    ///
    /// # Errors
    /// 429 `rate_limited`; `not_found` if people have no passwords here, or no mails are sent.
    pub async fn request_reset(
        &self,
        context: &Context,
        address: &EmailAddress,
    ) -> Result<(), StoreError> {
        self.need_mail()?;
        self.need_passwords()?;
        let text = token::generate(Prefix::Link);
        let token = |user: Option<UserId>| reset_token(&text, user, address);
        let written = self.reset_mail(&text, address, Some(asked_from(context)));
        let mail = |_: Option<&User>| written.clone();
        let sends = |user: Option<&User>| user.is_some_and(User::is_enabled);
        let parts = (&token as _, &mail as _, &sends as _);
        self.request(context, address, Action::PasswordResetRequested, parts)
            .await
    }

    /// Mails a user a link for a new password on the operator's behalf. Nobody but the person sets
    /// or sees the password.
    ///
    /// # Errors
    /// `not_found` if people have no passwords here, or no mails are sent; `user_disabled`.
    pub async fn mail_reset(&self, context: &Context, user: &User) -> Result<(), StoreError> {
        self.need_mail()?;
        self.need_passwords()?;
        if !user.is_enabled() {
            return Err(Code::UserDisabled.into());
        }
        let text = token::generate(Prefix::Link);
        let token = reset_token(&text, Some(user.id), &user.address);
        let mail = self.reset_mail(&text, &user.address, None);
        let what = (Action::PasswordResetRequested, true);
        self.store
            .identity()
            .request_mail(context, &token, &mail, what)
            .await
    }

    fn reset_mail(
        &self,
        text: &SecretString,
        to: &EmailAddress,
        asked_from: Option<mails::AskedFrom<'_>>,
    ) -> NewMail {
        let words = mails::password_reset(&mails::PasswordReset {
            site: self.site(),
            link: &self.link("/reset-password", text),
            valid_for: RESET_LASTS,
            asked_from,
        });
        mail("reset", to, words, RESET_LASTS)
    }

    /// Sets a new password by a mailed link. The password is judged before the link is used. All
    /// sessions of the user end.
    ///
    /// # Errors
    /// `link_invalid`, `link_used`, `link_expired`; `validation_failed`; 503 `overloaded`.
    pub async fn reset_password(
        &self,
        context: &Context,
        text: &str,
        password: &SecretString,
    ) -> Result<User, StoreError> {
        self.need_passwords()?;
        let opened = self.open_link(text, None).await?;
        if opened.kind != LinkKind::Reset {
            return Err(Code::LinkInvalid.into());
        }
        passwords::judge(password, &opened.address, "/password")?;
        let hash = self.hasher.hash(password).await?;
        let notice = |user: &User| self.password_notice(context, &user.address);
        let done = self
            .store
            .identity()
            .reset_password(context, &link_hash(text)?, &hash, &notice)
            .await?;
        let user = done.map_err(|fault| problem_of(Refusal::Token(fault)))?;
        self.store
            .identity()
            .forgive(&self.failures_for(&user.address).0)
            .await?;
        Ok(user)
    }

    /// A link for a user that the operator passes on.
    ///
    /// # Errors
    /// `not_found`, also if people can't sign in here.
    pub async fn operator_link(
        &self,
        context: &Context,
        user: UserId,
    ) -> Result<String, StoreError> {
        self.need_people()?;
        let text = token::generate(Prefix::Link);
        let token = NewToken {
            hash: TokenHash::of_secret(&text),
            purpose: Purpose::OperatorSignIn,
            user: Some(user),
            address: None,
            browser: None,
            code: None,
            payload: None,
            lasts: OPERATOR_LINK_LASTS,
            supersedes: true,
        };
        let identity = self.store.identity();
        identity.issue_operator_link(context, user, &token).await?;
        Ok(self.link("/sign-in/confirm", &text))
    }
}

fn reset_token(text: &SecretString, user: Option<UserId>, address: &EmailAddress) -> NewToken {
    NewToken {
        hash: TokenHash::of_secret(text),
        purpose: Purpose::Reset,
        user,
        address: Some(address.clone()),
        browser: None,
        code: None,
        payload: None,
        lasts: RESET_LASTS,
        supersedes: true,
    }
}
