"""Members are dealt out to workers: everybody's once, by speed, seeds together, whoever goes and comes."""

import random

import pytest

from vecsweep.cluster.shares import Shares


def members_of(dealt):
    return sorted(i for shard in dealt.values() for i in shard.members)


def test_equal_workers_have_all_members_at_once_in_equal_shares():
    shares = Shares([0] * 10, max_restarts=3, is_even=True)
    dealt = shares.deal(dict.fromkeys(range(4), 1.0))
    assert members_of(dealt) == list(range(10))
    assert sorted(len(shard.members) for shard in dealt.values()) == [2, 2, 3, 3]
    assert shares.num_waiting == 0


def test_fast_workers_have_more_members_and_some_are_left_for_who_is_done_first():
    shares = Shares([0] * 100, max_restarts=3)
    dealt = shares.deal({0: 1.0, 1: 3.0})
    assert [len(dealt[worker].members) for worker in (0, 1)] == [8, 22]
    assert shares.num_waiting == 70


def test_there_is_a_member_for_each_worker_as_long_as_there_are_members():
    shares = Shares([0] * 3, max_restarts=3, is_even=True)
    dealt = shares.deal(dict.fromkeys(range(5), 1.0))
    assert [len(shard.members) for shard in dealt.values()] == [1, 1, 1]


def test_a_seed_stays_together_where_that_leaves_shares_about_even():
    seeds = [0, 1, 2, 3] * 25  # members of a seed are not next to each other
    shares = Shares(seeds, max_restarts=3, is_even=True)
    dealt = shares.deal(dict.fromkeys(range(4), 1.0))
    assert [{seeds[i] for i in shard.members} for shard in dealt.values()] == [{0}, {1}, {2}, {3}]
    uneven = [0] * 52 + [1] * 48
    dealt = Shares(uneven, max_restarts=3, is_even=True).deal({0: 1.0, 1: 1.0})
    assert [{uneven[i] for i in shard.members} for shard in dealt.values()] == [{0}, {1}]


def test_a_seed_is_divided_where_there_are_more_workers():
    dealt = Shares([0] * 8, max_restarts=3, is_even=True).deal(dict.fromkeys(range(8), 1.0))
    assert len(dealt) == 8


def test_workers_that_are_yet_to_come_are_left_their_share():
    shares = Shares([0] * 9, max_restarts=3, is_even=True)
    assert len(shares.deal({0: 1.0, 1: 1.0}, num_coming=1)[0].members) == 3
    assert shares.num_waiting == 3


def test_members_of_a_lost_worker_are_divided_among_those_that_are_left():
    shares = Shares([0] * 12, max_restarts=3, is_even=True)
    dealt = shares.deal({0: 1.0, 1: 1.0, 2: 1.0})
    lost = dealt[1].members
    shares.lose(1)
    shares.done(0)
    part = shares.deal({0: 1.0})[0]
    assert set(part.members) < set(lost)
    assert part.num_restarts == 1


def test_whole_shards_come_back_as_they_were():
    shares = Shares([0] * 12, max_restarts=3, is_even=True, is_whole=True)
    dealt = shares.deal({0: 1.0, 1: 1.0})
    shares.lose(1)
    shares.done(0)
    assert shares.deal({0: 1.0})[0].members == dealt[1].members


def test_whole_shard_that_was_lost_is_begun_before_others_by_a_worker_that_is_as_fast():
    shares = Shares([0] * 100, max_restarts=3, is_whole=True)
    dealt = shares.deal({0: 1.0, 1: 3.0, 2: 2.9})
    shares.lose(1)
    shares.done(0)
    assert shares.deal({0: 1.0})[0].members != dealt[1].members
    shares.done(2)
    assert shares.deal({2: 2.9})[2].members == dealt[1].members


def test_slow_worker_has_a_whole_shard_of_a_fast_one_when_nothing_else_is_left():
    shares = Shares([0] * 2, max_restarts=3, is_whole=True)
    dealt = shares.deal({0: 1.0, 1: 3.0})
    shares.lose(1)
    shares.done(0)
    assert shares.deal({0: 1.0})[0].members == dealt[1].members


def test_shard_that_makes_room_is_dealt_out_after_those_that_wait():
    shares = Shares([0] * 9, max_restarts=3, is_even=True, is_whole=True)
    shares.deal({0: 1.0, 1: 1.0}, num_coming=1)
    made_room = shares.put_back(0)
    other = shares.deal({0: 1.0})[0]
    assert set(other.members).isdisjoint(made_room.members)
    assert shares.num_waiting == len(made_room.members)


def test_members_are_given_up_after_so_many_restarts():
    shares = Shares([0, 1], max_restarts=2, is_even=True)
    for worker in range(3):
        shares.deal({worker: 1.0, 10 + worker: 1.0})
        assert shares.lost == []
        shares.lose(worker)
        if 10 + worker in shares.running:
            shares.done(10 + worker)
    assert shares.lost == [0]
    assert shares.num_restarts == 2


def test_worker_that_has_nothing_can_be_lost():
    assert Shares([0], max_restarts=0).lose(7) is None


@pytest.mark.parametrize("is_even", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_every_member_is_trained_once_or_given_up_whoever_fails(seed, is_even):
    draw = random.Random(seed)
    num = draw.randint(1, 200)
    shares = Shares([k % draw.randint(1, 7) for k in range(num)], max_restarts=2, is_even=is_even)
    trained, workers = [], {k: draw.uniform(0.5, 3) for k in range(draw.randint(1, 12))}
    for step in range(10_000):
        shares.deal({k: speed for k, speed in workers.items() if k not in shares.running})
        if not shares.running:
            break
        worker = draw.choice(list(shares.running))
        if draw.random() < 0.3:
            shares.lose(worker)
            del workers[worker]
            workers[1000 + step] = 1.0
        else:
            trained += shares.done(worker).members
    assert sorted(trained + shares.lost) == list(range(num))
    assert shares.num_waiting == 0
