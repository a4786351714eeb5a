//! The train token of a request that a proxy asks about. It may be the bearer or the `x-api-key`;
//! what stands in the other header may be meant for somebody else.

use std::sync::Arc;

use poem::Request;

use domain::{
    Code,
    permission::Permission,
    token::{self, Prefix},
};
use persistence::Principal;

use super::{Carried, bearer};
use crate::shared::App;
use web::http::{ApiError, RequestContext};

/// Who holds the train token that came in one of the two headers.
pub(super) async fn principal(
    app: &App,
    (context, request): (&RequestContext, &Request),
    wanted: Permission,
) -> Result<Arc<Principal>, ApiError> {
    match (bearer::of(request), bearer::api_key(request)) {
        (Some(bearer), Some(key)) if bearer != key => {
            of_one(app, (context, request), [bearer, key], wanted).await
        }
        (bearer, key) => held(app, (context, request), bearer.or(key), wanted).await,
    }
}

/// Who holds the one that is a train's token. What has a train token's form is one, and what
/// stands beside it is none; where neither has, either may be an imported key.
async fn of_one(
    app: &App,
    asked: (&RequestContext, &Request),
    [bearer, key]: [&str; 2],
    wanted: Permission,
) -> Result<Arc<Principal>, ApiError> {
    let of_train = |text| token::recognise(text) == Some(Prefix::Train);
    let sent = match (of_train(bearer), of_train(key)) {
        (true, true) => return Err(Code::TwoTokens.into()),
        (false, true) => key,
        _ => bearer,
    };
    let holder = held(app, asked, Some(sent), wanted).await;
    if of_train(sent) || !app.store.knows_imported_tokens() {
        return holder;
    }
    match holder {
        Ok(holder) => Ok(holder),
        Err(refusal) => {
            let other = held(app, asked, Some(key), wanted).await;
            other.map_err(|_| refusal)
        }
    }
}

async fn held(
    app: &App,
    (context, request): (&RequestContext, &Request),
    sent: Option<&str>,
    wanted: Permission,
) -> Result<Arc<Principal>, ApiError> {
    let carried = Carried {
        request,
        token: sent,
    };
    let (principal, _) = app.authorize(context, carried, wanted).await?;
    Ok(principal)
}
