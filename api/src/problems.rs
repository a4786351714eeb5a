//! The problems of each operation's own, for the document. What an operation's shape implies is not
//! listed ([`complete`](web::contract::complete) says what that is), so many operations are not.

use domain::Code;
use web::contract::OperationDoc;

macro_rules! problems {
    ($($($operation:ident)|+: $codes:tt;)*) => {
        &[$($(OperationDoc {
            operation_id: stringify!($operation),
            codes: codes!($codes),
        }),+),*]
    };
}

macro_rules! codes {
    ([$($code:ident)+]) => { &[$(Code::$code),+] };
}

/// The operations that have problems of their own.
pub(crate) const PROBLEMS: &[OperationDoc] = problems! {
    create_publisher: [SlugTaken SecretNoLongerAvailable];
    suspend_publisher: [WrongPublisherState];
    resume_publisher: [WrongPublisherState SlugTaken];
    mint_admin_token: [WrongPublisherState QuotaExceeded SecretNoLongerAvailable];

    mint_credential | rotate_credentials | rotate_credential:
        [QuotaExceeded SecretNoLongerAvailable];
    delete_credential: [LastAdminToken LastSecret];

    put_pipeline: [DestinationRefused QuotaExceeded];
    delete_pipeline: [PipelineInUse];

    create_run: [SecretNoLongerAvailable PipelinePaused ConcurrencyLimit];
    cancel_run: [RunFinished];
    heartbeat_run | complete_run | fail_run | release_run: [ClaimLost];
    call_subcommand: [ClaimLost UnknownSubcommand];

    put_event_type: [QuotaExceeded];
    create_webhook_endpoint: [DestinationRefused QuotaExceeded];
    update_webhook_endpoint: [DestinationRefused];
    enable_webhook_endpoint: [QuotaExceeded];
    test_webhook_endpoint: [EndpointDisabled];
    mint_endpoint_secret | rotate_endpoint_secrets: [QuotaExceeded SecretNoLongerAvailable];
    delete_endpoint_secret: [LastSecret];
    get_webhook_keys: [RateLimited StoreUnavailable];
    start_replay: [EndpointDisabled QuotaExceeded];
    retry_delivery: [EndpointDisabled];
    listen: [QuotaExceeded];

    create_account: [DestinationRefused QuotaExceeded NameTaken];
    update_account: [NameTaken];
    replace_account: [DestinationRefused NameTaken];
    refresh_account: [WrongCredentialType RefreshFailed];
    start_oauth_login: [NotFound DestinationRefused NameTaken QuotaExceeded];
    finish_oauth_login: [NotFound LoginFailed NameTaken QuotaExceeded];

    create_train: [DestinationRefused QuotaExceeded SlugTaken];
    update_train: [DestinationRefused];
    mint_train_token: [QuotaExceeded SecretNoLongerAvailable];

    resolve: [TrainDisabled TrainExhausted NoAccountOfUpstream];
    report: [TrainDisabled NotFound];
    forward_auth_get | forward_auth_head | forward_auth_post | forward_auth_put | forward_auth_patch
        | forward_auth_delete | forward_auth_options:
        [TrainDisabled TrainExhausted NothingToLend NoAccountOfUpstream SeveralUpstreams TwoTokens];

    redeem_sign_in_code: [SignInFailed LinkUsed LinkExpired UserDisabled EmailUnverified];
    redeem_sign_in_link:
        [LinkInvalid LinkUsed LinkExpired OtherBrowser UserDisabled EmailUnverified];
    sign_in_with_password: [SignInFailed UserDisabled EmailUnverified];
    register: [RegistrationClosed];
    verify_registration: [LinkInvalid LinkUsed LinkExpired UserDisabled];
    reset_password: [LinkInvalid LinkUsed LinkExpired];
    confirm_email: [LinkInvalid LinkUsed LinkExpired AddressTaken];
    accept_invitation_link:
        [LinkInvalid LinkUsed LinkExpired UserDisabled InviterLostRights QuotaExceeded];
    accept_own_invitation: [LinkUsed LinkExpired InviterLostRights QuotaExceeded];

    update_member: [LastOwner];
    remove_member: [LastOwner LastAdminToken];
    leave_publisher: [LastOwner];
    create_invitation: [AlreadyMember QuotaExceeded];
};
