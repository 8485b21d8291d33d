"""Category tables of COCO and Objects365 as the published weights use them.

The published COCO weights number their classes 0..79 in ascending order of the COCO category id, which has gaps; those
of Objects365 by the category id, which begins with 1.
"""

from __future__ import annotations

COCO_NAMES: tuple[str, ...] = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear",
    "hair drier", "toothbrush",
)  # fmt: skip

# Hugging Face's config.json names six COCO classes as PASCAL VOC does.
COCO_ALIASES: dict[str, str] = {
    "motorbike": "motorcycle", "aeroplane": "airplane", "sofa": "couch", "pottedplant": "potted plant",
    "diningtable": "dining table", "tvmonitor": "tv",
}  # fmt: skip

COCO_CATEGORY_IDS: tuple[int, ...] = (
    *range(1, 12), *range(13, 26), 27, 28, *range(31, 45), *range(46, 66), 67, 70, *range(72, 83), *range(84, 91),
)  # fmt: skip

# Version 2, in the order of the category ids 1..365 and as its annotation files spell them (without spaces at the end).
OBJECTS365_NAMES: tuple[str, ...] = (
    "Person", "Sneakers", "Chair", "Other Shoes", "Hat", "Car", "Lamp", "Glasses", "Bottle", "Desk", "Cup",
    "Street Lights", "Cabinet/shelf", "Handbag/Satchel", "Bracelet", "Plate", "Picture/Frame", "Helmet", "Book",
    "Gloves", "Storage box", "Boat", "Leather Shoes", "Flower", "Bench", "Potted Plant", "Bowl/Basin", "Flag",
    "Pillow", "Boots", "Vase", "Microphone", "Necklace", "Ring", "SUV", "Wine Glass", "Belt", "Moniter/TV", "Backpack",
    "Umbrella", "Traffic Light", "Speaker", "Watch", "Tie", "Trash bin Can", "Slippers", "Bicycle", "Stool",
    "Barrel/bucket", "Van", "Couch", "Sandals", "Bakset", "Drum", "Pen/Pencil", "Bus", "Wild Bird", "High Heels",
    "Motorcycle", "Guitar", "Carpet", "Cell Phone", "Bread", "Camera", "Canned", "Truck", "Traffic cone", "Cymbal",
    "Lifesaver", "Towel", "Stuffed Toy", "Candle", "Sailboat", "Laptop", "Awning", "Bed", "Faucet", "Tent", "Horse",
    "Mirror", "Power outlet", "Sink", "Apple", "Air Conditioner", "Knife", "Hockey Stick", "Paddle", "Pickup Truck",
    "Fork", "Traffic Sign", "Ballon", "Tripod", "Dog", "Spoon", "Clock", "Pot", "Cow", "Cake", "Dinning Table",
    "Sheep", "Hanger", "Blackboard/Whiteboard", "Napkin", "Other Fish", "Orange/Tangerine", "Toiletry", "Keyboard",
    "Tomato", "Lantern", "Machinery Vehicle", "Fan", "Green Vegetables", "Banana", "Baseball Glove", "Airplane",
    "Mouse", "Train", "Pumpkin", "Soccer", "Skiboard", "Luggage", "Nightstand", "Tea pot", "Telephone", "Trolley",
    "Head Phone", "Sports Car", "Stop Sign", "Dessert", "Scooter", "Stroller", "Crane", "Remote", "Refrigerator",
    "Oven", "Lemon", "Duck", "Baseball Bat", "Surveillance Camera", "Cat", "Jug", "Broccoli", "Piano", "Pizza",
    "Elephant", "Skateboard", "Surfboard", "Gun", "Skating and Skiing shoes", "Gas stove", "Donut", "Bow Tie",
    "Carrot", "Toilet", "Kite", "Strawberry", "Other Balls", "Shovel", "Pepper", "Computer Box", "Toilet Paper",
    "Cleaning Products", "Chopsticks", "Microwave", "Pigeon", "Baseball", "Cutting/chopping Board", "Coffee Table",
    "Side Table", "Scissors", "Marker", "Pie", "Ladder", "Snowboard", "Cookies", "Radiator", "Fire Hydrant",
    "Basketball", "Zebra", "Grape", "Giraffe", "Potato", "Sausage", "Tricycle", "Violin", "Egg", "Fire Extinguisher",
    "Candy", "Fire Truck", "Billards", "Converter", "Bathtub", "Wheelchair", "Golf Club", "Briefcase", "Cucumber",
    "Cigar/Cigarette", "Paint Brush", "Pear", "Heavy Truck", "Hamburger", "Extractor", "Extention Cord", "Tong",
    "Tennis Racket", "Folder", "American Football", "earphone", "Mask", "Kettle", "Tennis", "Ship", "Swing",
    "Coffee Machine", "Slide", "Carriage", "Onion", "Green beans", "Projector", "Frisbee",
    "Washing Machine/Drying Machine", "Chicken", "Printer", "Watermelon", "Saxophone", "Tissue", "Toothbrush",
    "Ice cream", "Hotair ballon", "Cello", "French Fries", "Scale", "Trophy", "Cabbage", "Hot dog", "Blender", "Peach",
    "Rice", "Wallet/Purse", "Volleyball", "Deer", "Goose", "Tape", "Tablet", "Cosmetics", "Trumpet", "Pineapple",
    "Golf Ball", "Ambulance", "Parking meter", "Mango", "Key", "Hurdle", "Fishing Rod", "Medal", "Flute", "Brush",
    "Penguin", "Megaphone", "Corn", "Lettuce", "Garlic", "Swan", "Helicopter", "Green Onion", "Sandwich", "Nuts",
    "Speed Limit Sign", "Induction Cooker", "Broom", "Trombone", "Plum", "Rickshaw", "Goldfish", "Kiwi fruit",
    "Router/modem", "Poker Card", "Toaster", "Shrimp", "Sushi", "Cheese", "Notepaper", "Cherry", "Pliers", "CD",
    "Pasta", "Hammer", "Cue", "Avocado", "Hamimelon", "Flask", "Mushroon", "Screwdriver", "Soap", "Recorder", "Bear",
    "Eggplant", "Board Eraser", "Coconut", "Tape Measur/ Ruler", "Pig", "Showerhead", "Globe", "Chips", "Steak",
    "Crosswalk Sign", "Stapler", "Campel", "Formula 1", "Pomegranate", "Dishwasher", "Crab", "Hoverboard", "Meat ball",
    "Rice Cooker", "Tuba", "Calculator", "Papaya", "Antelope", "Parrot", "Seal", "Buttefly", "Dumbbell", "Donkey",
    "Lion", "Urinal", "Dolphin", "Electric Drill", "Hair Dryer", "Egg tart", "Jellyfish", "Treadmill", "Lighter",
    "Grapefruit", "Game board", "Mop", "Radish", "Baozi", "Target", "French", "Spring Rolls", "Monkey", "Rabbit",
    "Pencil Case", "Yak", "Red Cabbage", "Binoculars", "Asparagus", "Barbell", "Scallop", "Noddles", "Comb",
    "Dumpling", "Oyster", "Table Teniis paddle", "Cosmetics Brush/Eyeliner Pencil", "Chainsaw", "Eraser", "Lobster",
    "Durian", "Okra", "Lipstick", "Cosmetics Mirror", "Curling", "Table Tennis",
)  # fmt: skip

# Names of COCO for classes that Objects365 calls otherwise, and right spellings, by the name in lower case. Loose
# matches, as in the reference's table: bird is Wild Bird, suitcase Luggage, skis Skating and Skiing shoes, sports ball
# Baseball, tv Moniter/TV, teddy bear Stuffed Toy.
OBJECTS365_ALIASES: dict[str, str] = {
    "wild bird": "bird", "luggage": "suitcase", "skating and skiing shoes": "skis", "baseball": "sports ball",
    "monitor/tv": "tv", "moniter/tv": "tv", "stuffed toy": "teddy bear", "handbag/satchel": "handbag",
    "bowl/basin": "bowl", "orange/tangerine": "orange", "dinning table": "dining table", "hair dryer": "hair drier",
    "bakset": "basket", "ballon": "balloon", "hotair ballon": "hot air balloon", "billards": "billiards",
    "extention cord": "extension cord", "hamimelon": "hami melon", "mushroon": "mushroom", "campel": "camel",
    "tape measur/ ruler": "tape measure/ruler", "meat ball": "meatball", "buttefly": "butterfly",
    "noddles": "noodles", "table teniis paddle": "table tennis paddle",
}  # fmt: skip

OBJECTS365_CLASSES = 1 + len(OBJECTS365_NAMES)  # of the score heads: rows are category ids, and 0 is none


def objects365_names() -> tuple[str, ...]:
    """Names for the 366 rows of Objects365 weights; row 0 stands for nothing."""
    return ("objects365_0", *OBJECTS365_NAMES)
