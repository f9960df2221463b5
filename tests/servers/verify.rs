//! `mbcopy verify`: what it finds, what it excuses, and what it says.
