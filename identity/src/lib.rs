//! How people get in: sign-in, registration, invitations and sessions, without HTTP.
