"""What the store does in one step: Lua for Valkey and Redis.

Each script touches one key, so that a cluster works. Time is the store's own (`TIME`), in
quarters of a microsecond (a double holds no finer ones), rounded up, so that no node's clock matters. A stored time further ahead than a limit can owe is
cut to that: after a failover to a server whose clock is behind, nobody is locked out.
"""

from typing import Any, Final, NamedTuple

type Reply = Any
"""Whatever a script returns; None: the store did not answer."""

_NOW: Final = """
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
"""

TAKE: Final = (
    _NOW
    + """
local interval, tau = tonumber(ARGV[1]), tonumber(ARGV[2])
local need, extra, debt, hold = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local tat = tonumber(redis.call('GET', KEYS[1]) or 0)
local cap = now + tonumber(ARGV[7])
local before = tat
if tat > cap then tat = cap end
if debt > 0 then
  tat = math.max(tat, math.min(math.max(tat, now) + math.ceil(debt * interval * 4) / 4, now + 2 * tau))
end
local base = math.max(tat, now)
local granted = math.max(0, math.min(need, math.floor((now + tau - base) / interval)))
local wait = 0
if granted < need or need + extra == 0 then
  wait = math.max(0, math.ceil(base + (granted + 1) * interval - now - tau))
end
local leased, held = 0, 0
if granted == need and extra > 0 then
  -- Leased units may be used until the lease ends, so they count as if they came then. While there is plenty,
  -- that would cost quota, so such leases are short.
  held = math.floor(math.min(hold, math.max(hold / 4, base + need * interval - now)))
  local late = math.max(base, now + held)
  local fits = math.floor((now + tau - late) / interval) - need
  leased = math.max(0, math.min(extra, fits - math.floor(fits / 4)))
  if leased > 0 then base = late end
end
local units = granted + leased
if units > 0 then tat = base + math.ceil(units * interval * 4) / 4 end
if tat ~= before then
  redis.call('SET', KEYS[1], string.format('%.2f', tat), 'PX', math.max(1, math.ceil((tat - now) / 1000)) + 1000)
end
return {granted, leased, wait, string.format('%.2f', tat), math.ceil(math.max(0, tat - now)), held}
"""
)
"""ARGV: interval and tolerance (µs), units needed now, units for a lease, units owed, how long a lease holds at most (µs),
how far ahead a stored time may be (µs). Answers (needed units granted, units leased, µs to wait, the new time, how far ahead it is, how long the lease holds)."""

RETURN: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then
  local tat = string.format('%.2f', ARGV[1] - math.floor(ARGV[2] * 4) / 4)
  redis.call('SET', KEYS[1], tat, 'KEEPTTL')
  return tat
end
return ''
"""
"""Gives units back, if nobody took any since: ARGV are the time that the taking left behind, and the units in µs."""

SEATS: Final = (
    _NOW
    + """
local mine, quota, hold = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local others = 0
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local count, ends = string.match(all[i + 1], '^(%d+):(%d+)$')
  if ends == nil or tonumber(ends) <= now then
    redis.call('HDEL', KEYS[1], all[i])
  elseif all[i] ~= ARGV[1] then
    others = others + tonumber(count)
  end
end
if mine > 0 and others + mine > quota and ARGV[5] == '0' then return {0, others} end
if mine == 0 then
  redis.call('HDEL', KEYS[1], ARGV[1])
else
  redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f:%.0f', mine, now + hold))
  redis.call('PEXPIRE', KEYS[1], math.ceil(hold / 1000) + 1000)
end
return {1, others}
"""
)
"""Sets how many seats a node holds: ARGV are the node, its seats, the quota, how long that holds (µs), and whether it is
only a report of what is held. A node that is not heard of loses its seats. Answers (whether, seats of the others)."""

PEERS: Final = (
    _NOW
    + """
local hold = tonumber(ARGV[2])
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - hold)
redis.call('ZREMRANGEBYSCORE', KEYS[1], now + hold, '+inf')
redis.call('PEXPIRE', KEYS[1], math.ceil(hold / 1000))
return redis.call('ZCARD', KEYS[1])
"""
)
"""Says that a node is there, and counts those that said so within `hold` (µs). ARGV: the node, hold."""


ALL: Final = (TAKE, RETURN, SEATS, PEERS)


def answers_well(script: str, answer: object) -> bool:
    """Whether an answer is one that the script gives: whatever speaks the protocol may stand there."""
    if script == RETURN:
        return isinstance(answer, bytes | str)
    if script == PEERS:
        return _counts([answer])
    if not isinstance(answer, list):
        return False
    if script == SEATS:
        return len(answer) == 2 and _counts(answer)
    return len(answer) == 6 and isinstance(answer[3], bytes | str) and _counts([*answer[:3], *answer[4:]])


def _counts(values: list[object]) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


class Call(NamedTuple):
    """One script on one key."""

    script: str
    key: str
    arguments: tuple[str | int, ...]
