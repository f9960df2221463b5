//! Clients at work while a mailbox moves.
