//! What a signed-in person changes of their own: name, address, password, sessions; and the
//! publisher that whoever registers gets.

use domain::{
    Code,
    audit::Action,
    id::{SessionId, UserId},
    people::{EmailAddress, Purpose},
    slug::Slug,
    token::{self, Prefix, TokenHash},
};
use persistence::{
    Context, NewMail, NewPublisher, NewToken, OwnMembership, Session, SignedIn, StoreError, User,
};
use secrecy::SecretString;

use crate::{
    Service, mails, passwords,
    service::problem_of,
    sign_in::{REGISTRATION_LASTS, asked_from, link_hash, mail},
};

/// How long the link that confirms a new address is good.
pub const ADDRESS_CHANGE_LASTS: std::time::Duration = std::time::Duration::from_hours(24);

/// A change of address that waits for its link to be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressChange {
    /// The new address.
    pub address: EmailAddress,
}

/// What a change of password did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PasswordChange {
    /// Whether there was one before.
    pub replaced: bool,
}

impl Service {
    fn notice<'a>(&'a self, context: &'a Context, link: &'a str) -> mails::Notice<'a> {
        mails::Notice {
            site: self.site(),
            at: self.store.now(),
            asked_from: asked_from(context),
            link,
        }
    }

    pub(crate) fn password_notice(&self, context: &Context, to: &EmailAddress) -> NewMail {
        let link = self.page("/forgot-password");
        let words = mails::password_changed(&self.notice(context, &link));
        mail("password_changed", to, words, REGISTRATION_LASTS)
    }

    /// The notice about a passkey that was added, or removed.
    pub(crate) fn passkey_notice(
        &self,
        context: &Context,
        to: &EmailAddress,
        (name, added): (&str, bool),
    ) -> NewMail {
        let link = self.page("/account");
        let notice = self.notice(context, &link);
        let (kind, words) = if added {
            ("passkey_added", mails::passkey_added(&notice, name))
        } else {
            ("passkey_removed", mails::passkey_removed(&notice, name))
        };
        mail(kind, to, words, REGISTRATION_LASTS)
    }

    /// Sets or changes the password of a person who signed in recently. All other sessions end.
    ///
    /// # Errors
    /// `validation_failed`; 503 `overloaded`; `not_found` if people have no passwords here.
    pub async fn change_password(
        &self,
        context: &Context,
        who: &SignedIn,
        password: &SecretString,
    ) -> Result<PasswordChange, StoreError> {
        self.need_passwords()?;
        let address = &who.user.address;
        passwords::judge(password, address, "/password")?;
        let identity = self.store.identity();
        let replaced = identity.password_hash(who.user.id).await?.is_some();
        let hash = self.hasher.hash(password).await?;
        let notice = self.password_notice(context, address);
        let kept = Some(who.session.id);
        identity
            .set_password(context, who.user.id, &hash, kept, Some(&notice))
            .await?;
        Ok(PasswordChange { replaced })
    }

    /// Removes the password of a person, who signs in by mail or passkey from then on.
    ///
    /// # Errors
    /// `not_found` if there is none.
    pub async fn remove_password(
        &self,
        context: &Context,
        who: &SignedIn,
    ) -> Result<(), StoreError> {
        self.store
            .identity()
            .remove_password(context, who.user.id)
            .await
    }

    /// Whether a person has a password.
    ///
    /// # Errors
    /// The store can't be read.
    pub async fn has_password(&self, user: UserId) -> Result<bool, StoreError> {
        Ok(self.store.identity().password_hash(user).await?.is_some())
    }

    /// Mails a link to a new address. The address changes when the link is opened. Whether the
    /// address is another user's shows only then.
    ///
    /// # Errors
    /// 429 `rate_limited` if too many mails were asked for; `not_found` if no mails are sent.
    pub async fn request_address_change(
        &self,
        context: &Context,
        who: &SignedIn,
        address: &EmailAddress,
    ) -> Result<AddressChange, StoreError> {
        self.need_mail()?;
        let (to, from) = (self.mails_to(address), self.mails_from(context));
        self.check(&to).await?;
        self.check(&from).await?;
        self.count(&[to, from]).await?;
        let text = token::generate(Prefix::Link);
        let token = NewToken {
            hash: TokenHash::of_secret(&text),
            purpose: Purpose::ChangeAddress,
            user: Some(who.user.id),
            address: Some(address.clone()),
            browser: None,
            code: None,
            payload: None,
            lasts: ADDRESS_CHANGE_LASTS,
            supersedes: true,
        };
        let words = mails::confirm_email(&mails::ConfirmEmail {
            site: self.site(),
            link: &self.link("/account/confirm-address", &text),
            valid_for: ADDRESS_CHANGE_LASTS,
            asked_from: asked_from(context),
        });
        let new = mail("change_address", address, words, ADDRESS_CHANGE_LASTS);
        let what = (Action::SignInRequested, true);
        self.store
            .identity()
            .request_mail(context, &token, &new, what)
            .await?;
        Ok(AddressChange {
            address: address.clone(),
        })
    }

    /// Changes a user's address by a mailed link, and tells the old address.
    ///
    /// # Errors
    /// `link_invalid`, `link_used`, `link_expired`; `address_taken`.
    pub async fn confirm_address_change(
        &self,
        context: &Context,
        text: &str,
    ) -> Result<User, StoreError> {
        let link = self.page("/account");
        let notice = |user: &User, new: &EmailAddress| {
            let words = mails::email_changed(&self.notice(context, &link), new.as_str());
            mail(
                "address_changed",
                &user.address,
                words,
                ADDRESS_CHANGE_LASTS,
            )
        };
        let hash = link_hash(text)?;
        let identity = self.store.identity();
        let done = identity.change_address(context, &hash, &notice).await?;
        Ok(done.map_err(problem_of)?)
    }

    /// Changes a person's name; an empty one removes it.
    ///
    /// # Errors
    /// The store can't be written.
    pub async fn rename(
        &self,
        context: &Context,
        who: &SignedIn,
        name: Option<&str>,
    ) -> Result<User, StoreError> {
        let name = name.map(str::trim).filter(|name| !name.is_empty());
        let name = name.map(str::to_owned);
        self.store
            .identity()
            .rename_user(context, who.user.id, name, None)
            .await
    }

    /// The publishers of which a person is a member, by slug.
    ///
    /// # Errors
    /// The store can't be read.
    pub async fn memberships(&self, user: UserId) -> Result<Vec<OwnMembership>, StoreError> {
        self.store.identity().memberships(user).await
    }

    /// A person's live sessions, the most recently seen one first.
    ///
    /// # Errors
    /// The store can't be read.
    pub async fn sessions(&self, user: UserId) -> Result<Vec<Session>, StoreError> {
        self.store
            .identity()
            .sessions(user, self.settings.idle)
            .await
    }

    /// Ends one of a person's sessions.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn end_own_session(
        &self,
        context: &Context,
        user: UserId,
        session: SessionId,
    ) -> Result<(), StoreError> {
        self.store
            .identity()
            .end_session(context, user, session)
            .await
    }

    /// Ends all of a person's sessions, or all but one. Returns how many.
    ///
    /// # Errors
    /// The store can't be written.
    pub async fn end_sessions(
        &self,
        context: &Context,
        user: UserId,
        except: Option<SessionId>,
    ) -> Result<u64, StoreError> {
        self.store
            .identity()
            .end_sessions(context, user, except)
            .await
    }

    /// Gives a user who has registered a publisher of their own, unless the user is a member of one.
    pub(crate) async fn provision(&self, context: &Context, user: &User) -> Result<(), StoreError> {
        let name = user.display_name.clone();
        let new = NewPublisher {
            slug: slug_for(&user.address).ok_or(Code::Internal)?,
            display_name: name.unwrap_or_else(|| local_part(&user.address).to_owned()),
        };
        self.store
            .identity()
            .provision_publisher(context, user, &new)
            .await
    }
}

fn local_part(address: &EmailAddress) -> &str {
    address
        .as_str()
        .split_once('@')
        .map_or("", |(local, _)| local)
}

/// A free slug that begins like the address, so that its owner recognises it.
fn slug_for(address: &EmailAddress) -> Option<Slug> {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let local: String = local_part(address).chars().map(plain).take(40).collect();
    let random = hex::encode(domain::random::bytes::<4>());
    let begin = local.trim_matches('-');
    let text = if begin.is_empty() {
        format!("p-{random}")
    } else {
        format!("{begin}-{random}")
    };
    Slug::parse(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_makes_a_slug() {
        for text in ["ada@a.example", "+++@a.example", "O'Neil.x@a.example"] {
            let address = EmailAddress::parse(text).unwrap();
            assert!(slug_for(&address).is_some(), "{text}");
        }
    }
}
